"""The report's figures, drawn by matplotlib without a display.

An arm, a dataset or a measurement has the same colour everywhere. Figures have a white background,
also on a dark page.
"""
