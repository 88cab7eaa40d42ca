"""Experiments on real input that are ready to run: `unrollax train sequential-digits`."""
