"""Cleaning of the pretraining text: rules, the pass that compares documents, and what each rule
did.
"""
