"""What published benchmarks make of their measurements, made of ours, without their mistakes."""
