"""hpcstress beside its peers: one measurement per module, one question each, answered as ratios within one run."""
