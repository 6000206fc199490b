"""The table of `limbeck cache status`."""

from rich.markup import escape
from rich.table import Table

from teacher_cache.cache.target_cache import SAMPLE_UNITS, TargetCache
from teacher_cache.cache.teacher_score import load_score
from teacher_cache.console import count_of


def status_table(cache: TargetCache) -> Table:
    """Teacher, views, encoding, progress, and bytes on disk per target."""
    manifest, layout = cache.manifest, cache.layout
    missing = cache.missing()
    incomplete_seeds = {seed for unit in missing for seed in layout.seeds(unit)}
    target_count = manifest.seeds * sum(cache.rows)
    done = target_count - sum(len(layout.seeds(unit)) * cache.rows[unit.shard] for unit in missing)
    teacher, encoding = manifest.teacher, manifest.encoding
    stored = {"hard": "hard labels", "topk": f"top {encoding['k']} of", "dense": "all"}[encoding["kind"]]
    values = "" if encoding["kind"] == "hard" else f" logits as {encoding['values']}"

    table = Table(title=escape(cache.where), show_header=False)
    table.add_row("teacher", f"{escape(teacher['model'])}, {teacher['classes']} classes, {teacher['dtype']}")
    table.add_row("weights", f"sha256 {teacher['sha256'][:12]}")
    if manifest.class_match:
        table.add_row("classes", f"matched to the teacher's outputs by {manifest.class_match}")
    if score := load_score(cache.store):
        table.add_row("accuracy", f"{score.accuracy:.2f} % on {score.images:,} validation images")
    table.add_row("views", f"{manifest.views['size']} px, version {manifest.view_version}")
    table.add_row("encoding", f"{stored}{values}, digests of {encoding['digest_bits']} bits")
    table.add_row("images", f"{sum(cache.rows):,} in {count_of(len(cache.rows), 'shard')}")
    table.add_row("seeds", f"{manifest.seeds - len(incomplete_seeds):,} of {manifest.seeds:,} complete")
    table.add_row("units", f"{layout.unit_count - len(missing):,} of {layout.unit_count:,} done")
    table.add_row("targets", f"{done:,} of {target_count:,} ({done / target_count:.1%})")
    prefix = "about " if layout.unit_count > SAMPLE_UNITS else ""
    for name, size in cache.estimated_bytes(missing).items():
        per_target = f", {size / done:.2f} per target" if done else ""
        table.add_row(f"{name} on disk", f"{prefix}{size:,} bytes{per_target}")
    table.add_row("state", "incomplete; continue with: limbeck cache build RECIPE" if missing else "complete")
    return table
