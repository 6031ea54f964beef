"""The colours of all pictures."""

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
# Distinct in hue and lightness, also for the colour-blind (after Okabe and Ito).
COLOURS = ("#2563a8", "#d9730d", "#2a9d6f", "#b5478c", "#5b4fb3", "#8a6d1d", "#c43d3d", "#3aa0c4")
