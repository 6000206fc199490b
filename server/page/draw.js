// Page elements for answers. Text is set as text only, never as HTML.

const HEADS = {
  joint: ["Joint", "both heads, fused"],
  class: ["Class head", "learned from the labels"],
  distill: ["Distillation head", "learned from the teacher"],
};
const GAPS = 3;

/** Format a share 0..1 in percent; "< 0.1 %" and "> 99.9 %" are the limits. */
export function percent(share) {
  const whole = 100 * share;
  if (whole > 0 && whole < 0.1) return "< 0.1 %";
  if (whole < 100 && whole > 99.9) return "> 99.9 %";
  return `${whole.toFixed(1)} %`;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Make a card with bars for each head of `verdicts`. Classes that only one of the two heads lists are marked. */
export function headCards(verdicts, count) {
  const listed = Object.fromEntries(
    Object.entries(verdicts).map(([name, { top_k }]) => [name, top_k.slice(0, count)]),
  );
  return Object.entries(listed).map(([name, scores]) => {
    const [title, origin] = HEADS[name];
    const other = listed[{ class: "distill", distill: "class" }[name]];
    const rows = scores.map((score) => scoreLine(score, other && !other.some(({ index }) => index === score.index)));
    return make("section", { class: `head ${name}`, "aria-label": title },
      make("h3", {}, title), make("p", {}, origin), make("ol", { class: "scores" }, ...rows));
  });
}

function scoreLine({ label, probability }, alone) {
  const bar = make("span", { class: "bar" });
  bar.style.width = `${100 * probability}%`;
  const mark = alone ? [" ", make("span", { class: "only" }, "only this head")] : [];
  return make("li", {},
    make("span", { class: "line" },
      make("span", { class: "label" }, label, ...mark),
      make("span", { class: "share" }, percent(probability))),
    make("span", { class: "track", "aria-hidden": "true" }, bar));
}

/** Make lines for the classes whose probability differs most between the two heads. */
export function gapLines(verdicts) {
  const [one, other] = [verdicts.class.top_k, verdicts.distill.top_k].map(
    (scores) => new Map(scores.map((score) => [score.index, score])),
  );
  return [...one.values()]
    .filter(({ index }) => other.has(index))
    .map((score) => ({ label: score.label, class: score.probability, distill: other.get(score.index).probability }))
    .sort((a, b) => Math.abs(b.class - b.distill) - Math.abs(a.class - a.distill))
    .slice(0, GAPS)
    .map(gapLine);
}

function gapLine({ label, class: one, distill: other }) {
  const between = make("i");
  between.style.left = `${100 * Math.min(one, other)}%`;
  between.style.width = `${100 * Math.abs(one - other)}%`;
  const marks = Object.entries({ class: one, distill: other }).map(([name, share]) => {
    const mark = make("b", { class: name });
    mark.style.left = `${100 * share}%`;
    return mark;
  });
  return make("li", {},
    make("span", { class: "line" },
      make("span", { class: "label" }, label),
      make("span", { class: "share" }, `class ${percent(one)}, distillation ${percent(other)}`)),
    make("span", { class: "span", "aria-hidden": "true" }, between, ...marks));
}

/** Make figures of the network's input and of each token's attention. */
export function mapFigures({ seen, tokens }) {
  const names = { class: "Class token", distill: "Distillation token" };
  return [
    figure(seen, "Network input", "Network input", "the center of the image, at the network's input size", ""),
    ...Object.entries(tokens).map(([name, { png, peak, half }]) => {
      const words = `looks most at the ${placeOf(peak)}; half of its attention is on ${percent(half)} of the image`;
      return figure(png, `Attention map. ${names[name]} ${words}.`, names[name], words, name);
    }),
  ];
}

function figure(png, alt, title, words, tone) {
  const image = make("img", { src: `data:image/png;base64,${png}`, alt });
  return make("figure", { class: tone }, image, make("figcaption", {}, make("b", {}, title), ` ${words}`));
}

function placeOf([x, y]) {
  const across = x < 1 / 3 ? "left" : x > 2 / 3 ? "right" : "";
  const down = y < 1 / 3 ? "top" : y > 2 / 3 ? "bottom" : "";
  return `${down} ${across}`.trim() || "middle";
}
