def engine(layer): return "triton"
