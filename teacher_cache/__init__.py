"""Run a convnet once over seeded views of WebDataset shards and keep what it said in Zarr."""
