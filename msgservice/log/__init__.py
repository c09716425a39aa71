"""The durable store of batches (`ILog`). Never imports a transport."""
