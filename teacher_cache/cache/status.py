"""What `limbeck cache status` shows of a cache."""

from rich.markup import escape
from rich.table import Table

from teacher_cache.cache.target_cache import SAMPLE, TargetCache
from teacher_cache.cache.teacher_score import load_score
from teacher_cache.console import count_of


def status_table(cache: TargetCache) -> Table:
    """Teacher, views, encoding, how much is done, and bytes for each target kept."""
    manifest, layout = cache.manifest, cache.layout
    missing = cache.missing()
    lacking = {seed for unit in missing for seed in layout.seeds(unit)}
    everything = manifest.seeds * sum(cache.rows)
    done = everything - sum(len(layout.seeds(unit)) * cache.rows[unit.shard] for unit in missing)
    teacher, encoding = manifest.teacher, manifest.encoding
    kept = {"hard": "hard labels", "topk": f"top {encoding['k']} of", "dense": "all"}[encoding["kind"]]
    values = "" if encoding["kind"] == "hard" else f" logits as {encoding['values']}"

    table = Table(title=escape(cache.where), show_header=False)
    table.add_row("teacher", f"{escape(teacher['model'])}, {teacher['classes']} classes, {teacher['dtype']}")
    table.add_row("weights", f"sha256 {teacher['sha256'][:12]}")
    if exam := load_score(cache.store):
        table.add_row("examined", f"right on {exam.accuracy:.2f} % of {exam.images:,} validation images")
    table.add_row("views", f"{manifest.views['size']} px, version {manifest.view_version}")
    table.add_row("encoding", f"{kept}{values}, digests of {encoding['digest_bits']} bits")
    table.add_row("images", f"{sum(cache.rows):,} in {count_of(len(cache.rows), 'shard')}")
    table.add_row("seeds", f"{manifest.seeds - len(lacking):,} of {manifest.seeds:,} whole")
    table.add_row("units", f"{layout.count - len(missing):,} of {layout.count:,} done")
    table.add_row("targets", f"{done:,} of {everything:,} ({done / everything:.1%})")
    about = "about " if layout.count > SAMPLE else ""
    for name, size in cache.estimated_bytes(missing).items():
        each = f", {size / done:.2f} a target" if done else ""
        table.add_row(f"{name} on disk", f"{about}{size:,} bytes{each}")
    table.add_row("state", "incomplete; go on with: limbeck cache build RECIPE" if missing else "complete")
    return table
