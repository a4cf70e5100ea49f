"""SUPERB scores of the literature: its data, heads trained in full. In percent; MTWV times 100.

From the tables of the models' papers and repositories: LightHuBERT (https://arxiv.org/abs/2203.15610), DistilHuBERT,
FitHuBERT, DPHuBERT and ARMHuBERT.
"""

# Task and metric of each column, as the results call them.
COLUMNS = (
    ("pr", "per"),
    ("asr", "wer"),
    ("ks", "accuracy"),
    ("ic", "accuracy"),
    ("er", "accuracy"),
    ("qbe", "mtwv"),
    ("sf", "slot_f1"),
    ("sf", "slot_cer"),
    ("sid", "accuracy"),
    ("asv", "eer"),
    ("sd", "der"),
)

# Millions of parameters, then the columns.
SCORES = {
    "HuBERT Base": (94.7, 5.41, 6.42, 96.30, 98.34, 64.92, 7.36, 88.53, 25.20, 81.42, 5.11, 5.88),
    "LightHuBERT stage 1": (95, 4.15, 5.71, 96.82, 98.50, 66.25, 7.37, 88.44, 25.92, 80.01, 5.14, 5.51),
    "LightHuBERT small": (27, 6.60, 8.34, 96.07, 98.23, 64.12, 7.64, 87.58, 26.90, 69.70, 5.42, 5.85),
    "DistilHuBERT": (23.5, 16.27, 13.37, 95.98, 94.99, 63.02, 5.11, 82.57, 35.59, 73.54, 8.55, 6.19),
    "FitHuBERT": (22.5, 13.32, 12.09, 96.27, 91.25, 59.82, 4.89, 84.06, 32.46, 55.71, 8.00, 6.84),
    "DPHuBERT": (23.6, 9.67, 10.47, 96.36, 97.92, 63.16, 6.93, 86.86, 28.26, 76.83, 5.84, 5.92),
    "ARMHuBERT": (26.45, 7.72, 9.96, 96.88, 97.07, 62.86, 6.35, 87.59, 26.06, 65.03, 5.68, 7.10),
}
