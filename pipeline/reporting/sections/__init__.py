"""The sections of the report: each function turns evidence into one section and computes no statistic."""
