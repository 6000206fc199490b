"""What `limbeck cache status` shows of a cache."""

from rich.table import Table

from teacher_cache.cache import TargetCache


def status_table(cache: TargetCache) -> Table:
    """Teacher, views, encoding, how much is done, and bytes for each target kept."""
    manifest = cache.manifest
    missing, units = cache.missing(), list(cache.units())
    lacking = {seed for unit in missing for seed in cache.seeds(unit)}
    done = sum(len(cache.seeds(unit)) * cache.rows[unit.shard] for unit in set(units) - set(missing))
    everything = manifest.seeds * sum(cache.rows)
    teacher, encoding = manifest.teacher, manifest.encoding
    top_k = f" {encoding['k']}" if encoding["kind"] == "topk" else ""

    table = Table(title=str(cache.path), show_header=False)
    table.add_row("teacher", f"{teacher['model']}, {teacher['classes']} classes, sha256 {teacher['sha256'][:12]}")
    table.add_row("views", f"{manifest.views['size']} px, version {manifest.view_version}")
    table.add_row("encoding", f"{encoding['kind']}{top_k}, digests of {encoding['digest_bits']} bits")
    table.add_row("images", f"{sum(cache.rows):,} in {len(cache.rows):,} shards")
    table.add_row("seeds", f"{manifest.seeds - len(lacking):,} of {manifest.seeds:,} whole")
    table.add_row("units", f"{len(units) - len(missing):,} of {len(units):,} done")
    table.add_row("targets", f"{done:,} of {everything:,} ({done / everything:.1%})")
    for name, size in cache.bytes_by_column().items():
        table.add_row(name, f"{size:,} bytes" + (f", {size / done:.2f} a target" if done else ""))
    state = "complete" if not missing else "incomplete; go on with: limbeck cache build RECIPE"
    table.add_row("state", state)
    return table
