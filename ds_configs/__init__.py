"""One DeepSpeed JSON per role and size; read by uld_ds.training.deepspeed_config."""
