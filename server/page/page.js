// The page: send an image, show the heads' answers and the attention maps.

import { ask, Refused, useKey } from "./ask.js";
import { gapLines, headCards, mapFigures, percent } from "./draw.js";

const LISTED = 5; // bars per head
const COMPARED = 50; // classes compared between the heads
const MAX_BYTES = Number(document.querySelector("meta[name=limbeck-max-bytes]").content);
const $ = (id) => document.getElementById(id);

let image = null;
let controller = new AbortController();
let model = loadModel();

async function classify(file) {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  image = file;
  clear();
  preview(file);
  try {
    checkFile(file);
    showStatus("Waiting for the server …");
    const head = (await model)?.heads.includes("distill") ? "all" : "joint";
    const answer = await ask("v1/classify", { query: { head, top_k: COMPARED }, body: file, signal });
    show(answer.images[0]);
    await explain(signal);
  } catch (error) {
    if (!signal.aborted) showError(error);
  }
}

/** Reject invalid files before sending: a server may close the connection on a large body before it answers. */
function checkFile(file) {
  if (file.size === 0) throw new Refused(400, "This file is empty.");
  if (file.size > MAX_BYTES) {
    const [size, limit] = [file.size, MAX_BYTES].map((bytes) => (bytes / 1e6).toFixed(1));
    throw new Refused(413, "This image is too large.", `It has ${size} MB; this server accepts at most ${limit} MB.`);
  }
}

function show(answer) {
  const { heads, agree, label, probability, compute_ms } = answer;
  $("verdict").textContent = `${label}, ${percent(probability)}`;
  $("agreement").textContent =
    agree === null ? "This model has one head."
    : agree ? "Both heads agree."
    : `The heads disagree: the class head says ${heads.class.label}, the distillation head ${heads.distill.label}.`;
  $("heads").replaceChildren(...headCards(Object.keys(heads).length ? heads : { class: answer }, LISTED));
  $("gaps-section").hidden = !heads.distill;
  if (heads.distill) $("gaps").replaceChildren(...gapLines(heads));
  $("result").hidden = false;
  showStatus(`Computed in ${Math.round(compute_ms)} ms.`, `${$("verdict").textContent}. ${$("agreement").textContent}`);
}

/** Show a status; `announced` is the text for screen readers. */
function showStatus(text, announced = text) {
  $("status").textContent = text;
  $("spoken").textContent = announced;
}

async function explain(signal) {
  const method = document.querySelector("input[name=method]:checked").value;
  $("maps").setAttribute("aria-busy", "true");
  try {
    const maps = await ask("v1/explain", { query: { method, format: "json" }, body: image, signal });
    $("maps").replaceChildren(...mapFigures(maps));
    $("no-maps").hidden = true;
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 422) throw error;
    $("no-maps").textContent = error.message;
    $("no-maps").hidden = false;
    $("method").hidden = true;
  } finally {
    $("maps").removeAttribute("aria-busy");
  }
}

function preview(file) {
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(file);
  $("preview").alt = file.name ? `Your image, ${file.name}` : "Your image";
  $("preview").hidden = false;
  $("invite").textContent = "Choose, drop or paste another image";
}

function clear() {
  for (const id of ["problem", "entry", "result"]) $(id).hidden = true;
  $("maps").replaceChildren();
  $("method").hidden = false;
  showStatus("");
}

function showError(error) {
  if (!(error instanceof Refused)) throw error;
  showStatus("");
  $("title").textContent = error.title;
  $("reason").textContent = error.message;
  $("again").hidden = !error.isTransient;
  $("entry").hidden = error.status !== 401;
  $("problem").hidden = false;
}

function take(files) {
  const file = [...(files ?? [])][0];
  if (file) classify(file);
}

/** Fetch and show the model's card; undefined if that fails. */
async function loadModel() {
  try {
    const card = await ask("v1/model");
    $("model").textContent = `${card.name}, ${card.classes.length} classes`;
    return card;
  } catch (error) {
    showError(error);
  }
}

$("file").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // allows choosing the same file again
});
$("preview").addEventListener("error", () => { $("preview").hidden = true; });
$("again").addEventListener("click", () => (image ? classify(image) : location.reload()));
$("method").addEventListener("change", () => {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  explain(signal).catch((error) => { if (!signal.aborted) showError(error); });
});
$("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
  $("key").value = "";
  clear();
  model = loadModel();
  if (image) classify(image);
});
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // otherwise the browser opens the dropped file instead
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}
