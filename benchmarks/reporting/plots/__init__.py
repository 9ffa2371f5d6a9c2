"""Plots of a finished run. What imports matplotlib is imported only when something is drawn."""
