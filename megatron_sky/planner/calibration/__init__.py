"""`plan --calibrate`: the rates of the machine at hand, of the program's own operators: see docs/planner.md."""
