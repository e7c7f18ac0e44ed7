"""`horovod.spark.common`, of which stores and backends are here."""
