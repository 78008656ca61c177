"""What each technique of training buys for the model at hand, on this machine: `dvc repro -R
techniques`.
"""
