"""Images and who holds them: data sets (kind of `data:`) and partitions (kind of `data.partition:`)."""
