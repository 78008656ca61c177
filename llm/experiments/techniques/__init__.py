"""Memory, time and loss of each training technique on this machine: `dvc repro -R techniques`."""
