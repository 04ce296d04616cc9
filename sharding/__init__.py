"""How shards are made and read; nothing here knows how an encoder is trained."""
