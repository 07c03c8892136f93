// The device party in C: answers every input in `inputs.bin` by the router and by every model that
// fits. Its files are what `secure_router.h` asks of a board: `device.key` (provisioning),
// `counters.log` (flash), `entropy.bin` (32 fresh bytes a start, for a generator).
#include <secure_router.h>

#include "board.h"

#define INPUT_VALUES 1024
#define WORK_WORDS 4096

static sr_session session;
static uint8_t rx[SR_FRAME_BYTES], tx[SR_FRAME_BYTES];
static uint32_t work[WORK_WORDS];
static int16_t input[INPUT_VALUES], sample[INPUT_VALUES];

_Static_assert(sizeof(sr_session) == 8 * SR_SESSION_WORDS, "the header's session");

void sr_panic(void) {
    host_say("the library failed\n");
    host_exit(101);
}

static int fail(const char *what, int32_t code) {
    char text[160];
    host_say(what);
    host_say(": ");
    host_say(sr_describe(code));
    if (sr_error_text(&session, text, sizeof text) == 0) {
        host_say(" (");
        host_say(text);
        host_say(")");
    }
    host_say("\n");
    sr_close(&session);
    return 4;
}

// ---- spent counters: a log that is appended to, of 16 bytes a record

struct record {
    uint32_t program;
    uint32_t low, high; // the next good counter
    uint32_t check;
};

struct counters {
    uint64_t next[SR_PROGRAMS];
    uint32_t records;
    int broken;
};

static uint32_t check(const struct record *record) {
    return ~(record->program * 0x01000193u ^ record->low * 0x85ebca6bu ^ record->high);
}

static int counters_load(struct counters *counters) {
    int file = host_open("counters.log", HOST_READ);
    struct record record;
    if (file < 0) return 0;
    counters->records = 0;
    // A record that a power cut left incomplete was never acted on, and is written over.
    while (host_read(file, &record, sizeof record) == sizeof record) {
        if (record.program >= SR_PROGRAMS || record.check != check(&record)) return 0;
        counters->next[record.program] = (uint64_t)record.high << 32 | record.low;
        counters->records++;
    }
    host_close(file);
    return 1;
}

static int32_t counters_next(void *context, uint8_t program, uint64_t *counter) {
    struct counters *counters = context;
    *counter = counters->next[program];
    return counters->broken;
}

static int32_t counters_burn(void *context, uint8_t program, uint64_t counter) {
    struct counters *counters = context;
    uint64_t next = counter + 1;
    struct record record = {program, (uint32_t)next, (uint32_t)(next >> 32), 0};
    record.check = check(&record);
    if (counters->broken) return 1;
    int file = host_open("counters.log", HOST_UPDATE);
    counters->broken = file < 0 || !host_seek(file, counters->records * sizeof record) ||
                       !host_write(file, &record, sizeof record);
    if (file >= 0) host_close(file);
    if (counters->broken) return 1;
    counters->next[program] = next;
    counters->records++;
    return 0;
}

// ---- randomness: the host's fresh bytes, which are blanked as they are used

static int32_t random_fill(void *context, uint8_t *bytes, size_t length) {
    static const uint8_t zeros[32];
    int file = host_open("entropy.bin", HOST_UPDATE);
    (void)context;
    if (file < 0) return 1;
    int good = length <= sizeof zeros && host_read(file, bytes, length) == length && host_seek(file, 0) &&
               host_write(file, zeros, length);
    host_close(file);
    return !good;
}

// ---- the session

// Moves bytes until something happened.
static int32_t run(void) {
    for (;;) {
        sr_buffers io;
        int32_t event = sr_io(&session, &io);
        if (event < 0) return event;
        if (io.pending_bytes) {
            uart_send(io.pending, io.pending_bytes);
            event = sr_sent(&session, io.pending_bytes);
        } else if (!io.wanted_bytes) {
            return SR_ERROR_BUSY;
        } else {
            size_t count = uart_receive(io.wanted, io.wanted_bytes);
            event = count ? sr_received(&session, count) : sr_link_ended(&session);
        }
        if (event != SR_EVENT_NONE) return event;
    }
}

static int32_t prepare(uint8_t program) {
    int32_t event = sr_prepare(&session, program);
    return event < 0 ? event : run();
}

static int32_t infer(uint8_t program, size_t values, uint8_t *model) {
    const sr_request request = {.program = program, .lambda = SR_LAMBDA_RECOMMENDED, .bytes_per_second = 11520};
    int32_t event = sr_infer(&session, &request, sample, values);
    while (event >= 0 && (event = run()) == SR_EVENT_ROUTED) {}
    if (event == SR_EVENT_ANSWER) *model = (uint8_t)sr_answered_by(&session);
    return event;
}

// ---- the report

static int report(int file, uint8_t program, uint8_t model, int32_t class) {
    char text[2 * SR_NAME_BYTES + 8], *at = text;
    const uint8_t programs[] = {program, model};
    for (int i = 0; i < 2; i++) {
        sr_program_name(&session, programs[i], at, SR_NAME_BYTES);
        while (*at) at++;
        *at++ = ' ';
    }
    if (class > 9) *at++ = (char)('0' + class / 10 % 10);
    *at++ = (char)('0' + class % 10);
    *at++ = '\n';
    return host_write(file, text, (size_t)(at - text));
}

int main(void) {
    static struct counters counters;
    uint8_t provisioning[SR_PROVISIONING_BYTES];
    int key = host_open("device.key", HOST_READ), inputs = host_open("inputs.bin", HOST_READ),
        answers = host_open("answers.txt", HOST_CREATE);
    if (key < 0 || inputs < 0 || answers < 0 || !counters_load(&counters) ||
        host_read(key, provisioning, sizeof provisioning) != sizeof provisioning) {
        host_say("a file is missing or damaged\n");
        return 2;
    }
    uart_start();

    const sr_config config = {
        .size = sizeof config,
        .provisioning = provisioning,
        .rx = rx, .rx_bytes = sizeof rx,
        .tx = tx, .tx_bytes = sizeof tx,
        .work = work, .work_words = WORK_WORDS,
        .input = input, .input_values = INPUT_VALUES,
        .tile = 8,
        .counters = {&counters, counters_next, counters_burn},
        .random = {0, random_fill},
    };
    int32_t event = sr_open(&session, sizeof session, &config);
    for (size_t i = 0; i < sizeof provisioning; i++) ((volatile uint8_t *)provisioning)[i] = 0;
    if (event < 0) return fail("cannot open a session", event);
    if ((event = run()) != SR_EVENT_READY) return fail("cannot connect", event);

    sr_pool_info pool;
    if ((event = sr_pool(&session, &pool)) < 0 || pool.input_values > INPUT_VALUES) return fail("the pool", event);
    while (host_read(inputs, sample, 2u * pool.input_values) == 2u * pool.input_values) {
        for (uint8_t program = 0; program < SR_PROGRAMS; program++) {
            uint8_t model;
            if (!(pool.programs >> program & 1) || sr_fits(&session, program) < 0) continue;
            // Before an input is there: one inference in stock of whatever may run.
            for (uint8_t other = 0; other < SR_PROGRAMS; other++) {
                if (!(pool.programs >> other & 1) || sr_fits(&session, other) < 0 || sr_ready(&session, other) > 0)
                    continue;
                if ((event = prepare(other)) != SR_EVENT_PREPARED) return fail("cannot prepare", event);
            }
            if ((event = infer(program, pool.input_values, &model)) != SR_EVENT_ANSWER)
                return fail("no answer", event);
            if (!report(answers, program, model, sr_class(&session))) return 2;
        }
    }
    sr_close(&session);
    return 0;
}
