"""Models that make masks: SAM and SAM-HQ for single pictures; SAM 2, SAM 3 and EdgeTAM with a memory of the video."""
