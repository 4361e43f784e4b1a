-- KEYS: base. ARGV: lease, message id. Returns what ack() returns.
return ack(KEYS[1], ARGV[1], ARGV[2])
