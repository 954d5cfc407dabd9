"""Print the folder for nnU-Net's variable `nnUNet_extTrainer`, our trainers' fallback way in."""

from pathlib import Path

print(Path(__file__).parent / "ext_trainers")
