"""Data, losses and models of the Toybox detector and segmenter."""
