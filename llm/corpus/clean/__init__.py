"""Cleaning of the pretraining text: rules, comparison of documents, and a report by rule."""
