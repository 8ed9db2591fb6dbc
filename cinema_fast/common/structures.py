"""Names of the labels of this project, which the label maps of public data sets are mapped to."""

STRUCTURES = {1: "RV", 2: "MYO", 3: "LV", 4: "scar", 5: "no-reflow", 6: "oedema", 7: "LA", 8: "RA"}
