"""Pure logic: values in, values out. No Dagster, no driver, no environment, no clock, no files."""
