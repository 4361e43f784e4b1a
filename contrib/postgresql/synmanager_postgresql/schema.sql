-- The queues, and the steps on them. Every function is one transaction, and one round trip.
--
-- A job's number is its place among those of its rank. Times are seconds since the epoch by the
-- server's clock; only submitted_at is a producer's.

CREATE SCHEMA IF NOT EXISTS @schema@;

CREATE TABLE @schema@.version (version integer NOT NULL);
INSERT INTO @schema@.version VALUES (@version@);

CREATE TABLE @schema@.exchanges (name text PRIMARY KEY, type text NOT NULL);
CREATE TABLE @schema@.queues (
    queue integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE
);
CREATE TABLE @schema@.bindings (
    exchange text, key text, queue integer, PRIMARY KEY (exchange, key, queue)
);

CREATE SEQUENCE @schema@.numbers;
CREATE TABLE @schema@.jobs (
    number bigint PRIMARY KEY DEFAULT nextval('@schema@.numbers'),
    queue integer NOT NULL,
    id text NOT NULL DEFAULT 'foreign-' || md5(random()::text || clock_timestamp()::text),
    rank smallint NOT NULL DEFAULT 1,
    submitted_at double precision,
    schema integer NOT NULL DEFAULT 0,
    headers text NOT NULL DEFAULT '',    -- a JSON object, or empty
    body bytea NOT NULL,
    state text NOT NULL DEFAULT 'ready', -- or delayed, or leased
    deliveries integer NOT NULL DEFAULT 0, -- those that came to nothing
    due double precision,                -- of a delayed one
    holder text, token bigint,           -- of a leased one: the client, and its delivery
    since double precision, expires double precision,
    UNIQUE (queue, id)
);
CREATE INDEX ready ON @schema@.jobs (queue, rank DESC, number) WHERE state = 'ready';
CREATE INDEX delayed ON @schema@.jobs (queue, due) WHERE state = 'delayed';
CREATE INDEX leased ON @schema@.jobs (queue, expires) WHERE state = 'leased';
CREATE INDEX held ON @schema@.jobs (holder) WHERE state = 'leased';

CREATE TABLE @schema@.dead (
    letter bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue integer NOT NULL, id text NOT NULL, rank smallint NOT NULL,
    submitted_at double precision, schema integer NOT NULL, headers text NOT NULL,
    body bytea NOT NULL,
    reason text NOT NULL, traceback text NOT NULL, attempts integer NOT NULL,
    died_at double precision NOT NULL
);
CREATE INDEX dead_by_queue ON @schema@.dead (queue, letter);

-- What other programs submit to: INSERT INTO inbox (queue, body) VALUES ('train', '{"run": 1}').
CREATE VIEW @schema@.inbox (queue, body) AS
    SELECT name, convert_from(body, 'UTF8')
      FROM @schema@.jobs JOIN @schema@.queues USING (queue) WHERE state = 'ready';

-- A log of the journal; total counts the bytes of it and of all before it.
CREATE TABLE @schema@.journal (
    log text, position bigint, recorded_at double precision NOT NULL, total bigint NOT NULL,
    data bytea NOT NULL, PRIMARY KEY (log, position)
);
CREATE INDEX journal_by_time ON @schema@.journal (log, recorded_at);

CREATE FUNCTION @schema@.seconds() RETURNS double precision LANGUAGE sql VOLATILE AS
$$ SELECT extract(epoch FROM clock_timestamp())::double precision $$;

-- The channel on which whoever waits for a queue is called.
CREATE FUNCTION @schema@.ring(the_queue integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('@schema@.' || the_queue, '');
END $$;

CREATE FUNCTION @schema@.number_of(the_name text) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE found integer;
BEGIN
    SELECT queue INTO found FROM @schema@.queues WHERE name = the_name;
    IF found IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SM001',
            MESSAGE = format('there is no queue %L; declare it first', the_name);
    END IF;
    RETURN found;
END $$;

CREATE FUNCTION @schema@.submitted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE q integer := @schema@.number_of(NEW.queue);
BEGIN
    INSERT INTO @schema@.jobs (queue, body) VALUES (q, convert_to(NEW.body, 'UTF8'));
    PERFORM @schema@.ring(q);
    RETURN NEW;
END $$;
CREATE TRIGGER submitted INSTEAD OF INSERT ON @schema@.inbox
    FOR EACH ROW EXECUTE FUNCTION @schema@.submitted();

-- Topology

CREATE FUNCTION @schema@.declare(the_exchange text, the_type text, the_queue text, the_key text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE there text; q integer;
BEGIN
    SELECT type INTO there FROM @schema@.exchanges WHERE name = the_exchange;
    IF there IS NULL THEN
        INSERT INTO @schema@.exchanges VALUES (the_exchange, the_type) ON CONFLICT DO NOTHING;
        SELECT type INTO there FROM @schema@.exchanges WHERE name = the_exchange;
    END IF;
    IF there <> the_type THEN
        RAISE EXCEPTION USING ERRCODE = 'SM002',
            MESSAGE = format('exchange %L is of type %s, not %s', the_exchange, there, the_type);
    END IF;
    IF the_queue IS NULL THEN
        RETURN;
    END IF;
    SELECT queue INTO q FROM @schema@.queues WHERE name = the_queue;
    IF q IS NULL THEN
        INSERT INTO @schema@.queues (name) VALUES (the_queue) ON CONFLICT DO NOTHING;
        q := @schema@.number_of(the_queue);
    END IF;
    IF NOT EXISTS (SELECT 1 FROM @schema@.bindings
                    WHERE exchange = the_exchange AND key = the_key AND queue = q) THEN
        INSERT INTO @schema@.bindings VALUES (the_exchange, the_key, q) ON CONFLICT DO NOTHING;
    END IF;
END $$;

-- Publishing. Returns to how many queues the route leads, and how many of the ids any of them took.
CREATE FUNCTION @schema@.publish(
    the_exchange text, the_key text, ids text[], ranks text[], times text[], schemas text[],
    all_headers text[], bodies bytea[], delay double precision
) RETURNS TABLE (routes integer, taken integer) LANGUAGE plpgsql AS $$
DECLARE
    targets integer[];
    due_at double precision := CASE WHEN delay > 0 THEN @schema@.seconds() + delay END;
    q integer;
BEGIN
    SELECT array_agg(b.queue ORDER BY b.queue) INTO targets
      FROM @schema@.bindings b JOIN @schema@.exchanges e ON e.name = b.exchange
     WHERE e.name = the_exchange
       AND b.key = CASE WHEN e.type = 'fanout' THEN '' ELSE the_key END;
    routes := coalesce(cardinality(targets), 0);
    IF routes = 0 THEN
        taken := 0;
        RETURN NEXT;
        RETURN;
    END IF;
    WITH taken_ids AS (
        INSERT INTO @schema@.jobs
            (queue, id, rank, submitted_at, schema, headers, body, state, due)
        SELECT t.queue, g.id, g.rank::smallint, g.at::double precision, g.schema::integer,
               g.headers, g.body, CASE WHEN due_at IS NULL THEN 'ready' ELSE 'delayed' END, due_at
          FROM unnest(targets) t (queue)
         CROSS JOIN unnest(ids, ranks, times, schemas, all_headers, bodies) WITH ORDINALITY
               g (id, rank, at, schema, headers, body, place)
         ORDER BY t.queue, g.place
        ON CONFLICT (queue, id) DO NOTHING
        RETURNING jobs.id
    )
    SELECT count(DISTINCT id) INTO taken FROM taken_ids;
    FOREACH q IN ARRAY targets LOOP
        PERFORM @schema@.ring(q);
    END LOOP;
    RETURN NEXT;
END $$;

-- Leases

-- End a delivery's lease by removing the job; whether it was there.
CREATE FUNCTION @schema@.finish(the_number bigint, me text, the_token bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM @schema@.jobs WHERE number = the_number AND state = 'leased'
       AND holder = me AND token = the_token;
    RETURN FOUND;
END $$;

CREATE FUNCTION @schema@.give_back(the_number bigint, me text, the_token bigint,
                                   delay double precision, counts integer)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE q integer;
BEGIN
    UPDATE @schema@.jobs
       SET state = CASE WHEN delay > 0 THEN 'delayed' ELSE 'ready' END,
           due = CASE WHEN delay > 0 THEN @schema@.seconds() + delay END,
           deliveries = deliveries + counts,
           holder = NULL, token = NULL, since = NULL, expires = NULL
     WHERE number = the_number AND state = 'leased' AND holder = me AND token = the_token
    RETURNING queue INTO q;
    IF q IS NULL THEN
        RETURN false;
    END IF;
    PERFORM @schema@.ring(q);
    RETURN true;
END $$;

CREATE FUNCTION @schema@.bury(the_number bigint, me text, the_token bigint, why text,
                              trace text, the_attempts integer)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (
        DELETE FROM @schema@.jobs WHERE number = the_number AND state = 'leased'
           AND holder = me AND token = the_token RETURNING *
    )
    INSERT INTO @schema@.dead (queue, id, rank, submitted_at, schema, headers, body,
                               reason, traceback, attempts, died_at)
    SELECT queue, id, rank, submitted_at, schema, headers, body,
           why, trace, the_attempts, @schema@.seconds() FROM gone;
    RETURN FOUND;
END $$;

CREATE FUNCTION @schema@.renew(the_number bigint, me text, the_token bigint,
                               lease double precision)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE now double precision := @schema@.seconds();
BEGIN
    UPDATE @schema@.jobs SET since = now, expires = now + lease
     WHERE number = the_number AND state = 'leased' AND holder = me AND token = the_token;
    RETURN FOUND;
END $$;

-- All that a client holds, or what it holds by these tokens and nobody got.
CREATE FUNCTION @schema@.give_back_all(me text, tokens bigint[], counts integer)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE q integer;
BEGIN
    FOR q IN
        WITH gone AS (
            UPDATE @schema@.jobs
               SET state = 'ready', deliveries = deliveries + counts,
                   holder = NULL, token = NULL, since = NULL, expires = NULL
             WHERE state = 'leased' AND holder = me AND (tokens IS NULL OR token = ANY (tokens))
            RETURNING queue
        )
        SELECT DISTINCT queue FROM gone
    LOOP
        PERFORM @schema@.ring(q);
    END LOOP;
END $$;

-- Take one job of the first queue that has one. Time does its work on the way: what is due becomes
-- ready, behind all that is, and what the dead held goes back to its place.
--
-- expected, tolerance, trusted: see synmanager.trust; an expired lease is believed by who has seen
--     this clock go right for half of it.
-- pause: seconds after which time alone may bring something. unbelieved: seconds after which an
--     expired lease can be believed, 0 for none.
CREATE FUNCTION @schema@.take(
    names text[], me text, the_token bigint, lease double precision,
    expected double precision, tolerance double precision, trusted double precision
) RETURNS TABLE (
    now double precision, pause double precision, unbelieved double precision, queues integer[],
    name text, number bigint, deliveries integer,
    id text, rank smallint, submitted_at double precision, schema integer, headers text, body bytea
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    q integer;
    at double precision := @schema@.seconds();
    due_next double precision;
    row record;
    awake double precision := greatest(trusted, 0) / 1000;
BEGIN
    IF abs(at * 1000 - expected) > tolerance THEN
        awake := 0;
    END IF;
    now := at;
    unbelieved := 0;
    queues := '{}';
    FOREACH name IN ARRAY names LOOP
        q := @schema@.number_of(name);
        queues := queues || q;
        FOR row IN SELECT j.number FROM @schema@.jobs j
                    WHERE j.queue = q AND j.state = 'delayed' AND j.due <= at
                    ORDER BY j.due, j.number LIMIT 100 FOR UPDATE SKIP LOCKED LOOP
            UPDATE @schema@.jobs j
               SET state = 'ready', due = NULL, number = nextval('@schema@.numbers')
             WHERE j.number = row.number;
        END LOOP;
        FOR row IN SELECT j.number, (j.expires - j.since) / 2 - awake AS doubt
                     FROM @schema@.jobs j
                    WHERE j.queue = q AND j.state = 'leased' AND j.expires <= at
                    ORDER BY j.expires LIMIT 100 FOR UPDATE SKIP LOCKED LOOP
            IF row.doubt <= 0 THEN
                UPDATE @schema@.jobs j
                   SET state = 'ready', deliveries = j.deliveries + 1,
                       holder = NULL, token = NULL, since = NULL, expires = NULL
                 WHERE j.number = row.number;
            ELSIF unbelieved = 0 OR row.doubt < unbelieved THEN
                unbelieved := row.doubt;
            END IF;
        END LOOP;
        SELECT least((SELECT min(j.due) FROM @schema@.jobs j
                       WHERE j.queue = q AND j.state = 'delayed'),
                     (SELECT min(j.expires) FROM @schema@.jobs j
                       WHERE j.queue = q AND j.state = 'leased' AND j.expires > at))
          INTO due_next;
        pause := least(pause, CASE WHEN due_next > at THEN due_next - at WHEN due_next <= at THEN 0 END);
        UPDATE @schema@.jobs j
           SET state = 'leased', holder = me, token = the_token, since = at, expires = at + lease
         WHERE j.number = (
               SELECT f.number FROM @schema@.jobs f
                WHERE f.queue = q AND f.state = 'ready'
                ORDER BY f.rank DESC, f.number LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING j.number, j.deliveries, j.id, j.rank, j.submitted_at, j.schema, j.headers, j.body
          INTO number, deliveries, id, rank, submitted_at, schema, headers, body;
        IF number IS NOT NULL THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
    name := NULL;
    IF unbelieved > 0 THEN
        pause := least(pause, unbelieved);
    END IF;
    RETURN NEXT;
END $$;

-- Operations

CREATE FUNCTION @schema@.redrive(the_name text, most integer)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    q integer := @schema@.number_of(the_name);
    letter_ record;
    moved integer := 0;
BEGIN
    FOR letter_ IN SELECT * FROM @schema@.dead d WHERE d.queue = q ORDER BY d.letter
                      FOR UPDATE SKIP LOCKED LOOP
        EXIT WHEN moved >= most;
        INSERT INTO @schema@.jobs (queue, id, rank, submitted_at, schema, headers, body)
        VALUES (q, letter_.id, letter_.rank, letter_.submitted_at, letter_.schema,
                letter_.headers, letter_.body)
        ON CONFLICT (queue, id) DO NOTHING; -- one that is queued again stays
        IF FOUND THEN
            DELETE FROM @schema@.dead d WHERE d.letter = letter_.letter;
            moved := moved + 1;
        END IF;
    END LOOP;
    IF moved > 0 THEN
        PERFORM @schema@.ring(q);
    END IF;
    RETURN moved;
END $$;

-- The journal. Whoever appends to a log does so alone, so that positions are seen in their order.
CREATE FUNCTION @schema@.record(the_log text, entries bytea[], age double precision, most bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    last_position bigint; last_total bigint; at double precision; entry bytea;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('@schema@.journal.' || the_log, 0));
    SELECT position, total INTO last_position, last_total
      FROM @schema@.journal WHERE log = the_log ORDER BY position DESC LIMIT 1;
    last_position := coalesce(last_position, (extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    last_total := coalesce(last_total, 0);
    at := @schema@.seconds();
    FOREACH entry IN ARRAY entries LOOP
        last_position := last_position + 1;
        last_total := last_total + length(entry);
        INSERT INTO @schema@.journal VALUES (the_log, last_position, at, last_total, entry);
    END LOOP;
    DELETE FROM @schema@.journal j USING (
        SELECT position, recorded_at, total FROM @schema@.journal
         WHERE log = the_log AND position < last_position ORDER BY position LIMIT 1000
    ) oldest WHERE j.log = the_log AND j.position = oldest.position
       AND (oldest.recorded_at < at - age OR oldest.total <= last_total - most);
    PERFORM pg_notify('@schema@.' || the_log, '');
END $$;
