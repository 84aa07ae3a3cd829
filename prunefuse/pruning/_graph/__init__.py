"""Models and their graphs: exporting and copying them, the sizes that modules hold, the trace and its couplings."""
