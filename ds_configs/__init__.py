"""One DeepSpeed JSON per role and size; read by uld_ds.deepspeed_config."""
