/*
 * SecureRouter's device party for firmware in C. Made from targets/c/src; do not edit.
 *
 * One session at a time does everything: it holds no global state, allocates nothing, waits for
 * nothing and draws no entropy but through `sr_random.fill`.
 *
 *   static sr_session session;                    // zeros, and never copied
 *   sr_open(&session, sizeof session, &config);   // lends memory, draws randomness
 *   event = run(&session);                        // SR_EVENT_READY
 *   sr_prepare(&session, SR_ROUTER);              // before the input is there
 *   run(&session);                                // SR_EVENT_PREPARED
 *   // and each model that the router may pick but does not answer itself
 *   sr_infer(&session, &request, input, values);
 *   while ((event = run(&session)) == SR_EVENT_ROUTED) {}
 *   if (event == SR_EVENT_ANSWER) class = sr_class(&session);
 *   sr_close(&session);                           // wipes
 *
 * where `run` moves bytes until something happened, sending first:
 *
 *   for (;;) {
 *       sr_buffers io;
 *       int32_t event = sr_io(&session, &io);
 *       if (event < 0) return event;
 *       if (io.pending_bytes) event = sr_sent(&session, uart_send(io.pending, io.pending_bytes));
 *       else if (!io.wanted_bytes) return SR_ERROR_BUSY;      // no request is under way
 *       else if ((got = uart_receive(io.wanted, io.wanted_bytes)) > 0) event = sr_received(&session, got);
 *       else event = sr_link_ended(&session);
 *       if (event != SR_EVENT_NONE) return event;
 *   }
 *
 * Functions that return int32_t return an event or another number from 0 up, or an SR_ERROR below.
 * After an error of sr_received, sr_sent or sr_link_ended the session is over: close it, and open
 * another. Bad pointers are an error where they can be told: null, misaligned, of wrong size,
 * meeting the session's memory. A session belongs to one thread: called from an interrupt or a
 * callback while it is at work, it says SR_ERROR_REENTERED and nothing else happens.
 *
 * Memory: the session (SR_SESSION_WORDS), two frames (SR_FRAME_BYTES), work space and input for
 * the largest program to run (`secure-router cost` prints the sum), and some kilobytes of stack.
 * From SR_EVENT_READY on, sr_fits says whether a program fits, and after it sr_error_text which
 * buffer is too small and what it needs.
 *
 * The firmware provides `void sr_panic(void)`, which does not return: it is called for a fault of
 * the library's, and should restart the device. Spent counters stay spent, so that this is safe.
 */

#ifndef SECURE_ROUTER_H
#define SECURE_ROUTER_H

#include <stddef.h>
#include <stdint.h>
#if UINTPTR_MAX == 0xffffffffu
#define SR_32_BIT
#endif

// Bytes of `rx` and of `tx`, each.
#define SR_FRAME_BYTES 1043

// Bytes of a device's provisioning.
#define SR_PROVISIONING_BYTES 136

// Most programs of a pool: the router and eight models.
#define SR_PROGRAMS 9

// The router's number. Model `i` has number `1 + i`.
#define SR_ROUTER 0

// A request's `lambda` that leaves the weight of cost to the pool, whose trainer recommends one.
#define SR_LAMBDA_RECOMMENDED 65535

// Enough for the name of a program and its NUL.
#define SR_NAME_BYTES 17

#if defined(SR_32_BIT)
// 64-bit words of a session.
#define SR_SESSION_WORDS 256
#endif

#if !defined(SR_32_BIT)
// 64-bit words of a session.
#define SR_SESSION_WORDS 288
#endif

// Nothing happened yet: go on with `sr_io`.
#define SR_EVENT_NONE 0

// The server said which pool it serves; requests may follow.
#define SR_EVENT_READY 1

// An inference is in stock of the program that `sr_detail` tells.
#define SR_EVENT_PREPARED 2

// The router chose the model that `sr_detail` tells; its run follows by itself.
#define SR_EVENT_ROUTED 3

// The answer is there: `sr_class`, `sr_logits`, `sr_answered_by`.
#define SR_EVENT_ANSWER 4

// The request was refused, by the server or for want of stock; `sr_detail` tells why. The session goes on.
#define SR_EVENT_REFUSED 5

// The router chose the model that `sr_detail` tells and told this device alone; nothing follows by
// itself. What is asked for next must not depend on it.
#define SR_EVENT_ADVISED 6

// No stock for this program: prepare some.
#define SR_REFUSED_STOCK_EMPTY 1

// The counter is not the next in stock, or was seen before: connect again.
#define SR_REFUSED_COUNTER 2

// The pool has no such program.
#define SR_REFUSED_NO_SUCH_PROGRAM 3

// The server has got nothing from its dealer: try again later.
#define SR_REFUSED_DEALER 4

// The server's stock store failed: try again later.
#define SR_REFUSED_STORE 5

// The server's pool changed: connect again.
#define SR_REFUSED_POOL_CHANGED 6

// The server gives this device no more answers.
#define SR_REFUSED_QUERY_BUDGET 7

// The dealer deals this device no more private routes.
#define SR_REFUSED_PRIVACY_BUDGET 8

// The pool routes openly, and this device has a budget of privacy.
#define SR_REFUSED_ROUTING 9

// Another reason.
#define SR_REFUSED_OTHER 99

// A pointer is null or misaligned, a size is wrong, or memory overlaps.
#define SR_ERROR_ARGUMENT (-1)

// The session's storage or the configuration has another size than this library's.
#define SR_ERROR_SIZE (-2)

// The session is not open.
#define SR_ERROR_NOT_OPEN (-3)

// The session is open already.
#define SR_ERROR_OPEN (-4)

// The session is at work: it was called from a callback or an interrupt.
#define SR_ERROR_REENTERED (-5)

// The provisioning is blank or none.
#define SR_ERROR_PROVISIONING (-6)

// There is no answer to read.
#define SR_ERROR_NO_ANSWER (-7)

// The random source failed or repeats itself.
#define SR_ERROR_RANDOM (-10)

// The link is not the server's: forged, altered, cut off or of another protocol.
#define SR_ERROR_CHANNEL (-11)

// The server's pool is not valid.
#define SR_ERROR_POOL (-12)

// A buffer is too small for this program.
#define SR_ERROR_BUFFER (-13)

// The counter store failed.
#define SR_ERROR_COUNTERS (-14)

// A protocol message is not what its turn expects.
#define SR_ERROR_PROTOCOL (-15)

// The server offered a spent counter, or one far beyond the next.
#define SR_ERROR_COUNTER_OFFERED (-16)

// A request is under way, or the session is not ready.
#define SR_ERROR_BUSY (-17)

// The pool has no such program.
#define SR_ERROR_NO_SUCH_PROGRAM (-18)

// Nothing is in stock for this program: prepare first.
#define SR_ERROR_STOCK_EMPTY (-19)

// The input has the wrong number of values.
#define SR_ERROR_INPUT_LENGTH (-20)

// An input value is outside the pool's range.
#define SR_ERROR_INPUT_RANGE (-21)

// The session has ended: close it and open another.
#define SR_ERROR_CLOSED (-22)

// The server's pool has a less private routing than the device takes part in.
#define SR_ERROR_ROUTING (-23)

// Another error of the session.
#define SR_ERROR_OTHER (-99)

// A session. Opaque, never copied or moved, and all zeros before it is first opened, as static
// memory is.
typedef struct sr_session {
  uint64_t opaque[SR_SESSION_WORDS];
} sr_session;

// The device's non-volatile memory of spent counters. Both functions return 0, or anything else
// for a failure, after which nothing is started.
typedef struct sr_counters {
  // Passed on to both.
  void *context;
  // Tells the lowest counter of `program` that was never burned; 0 on a new device.
  int32_t (*next)(void *context, uint8_t program, uint64_t *counter);
  // Burns every counter of `program` up to and with `counter`. Must not return before that is
  // durable: a power cut right after the return must not bring it back.
  int32_t (*burn)(void *context, uint8_t program, uint64_t counter);
} sr_counters;

// The device's generator. Drawn from while a session is opened, and never after.
typedef struct sr_random {
  // Passed on.
  void *context;
  // Fills `bytes` with unpredictable ones. Returns 0, or anything else for a failure.
  int32_t (*fill)(void *context, uint8_t *bytes, size_t length);
} sr_random;

// What a session is opened with. The memory is the session's until `sr_close`; it is wiped.
typedef struct sr_config {
  // `sizeof(sr_config)`.
  size_t size;
  // `SR_PROVISIONING_BYTES` bytes, needed during `sr_open` only: `SRK2`, the device's secret
  // key, the server's public key, the seeds shared with dealer and server, and the most that a route
  // may tell the server, in thousandths of epsilon: 4 bytes, little-endian, all 0xff for open routing.
  const uint8_t *provisioning;
  // Incoming frame.
  uint8_t *rx;
  // At least `SR_FRAME_BYTES`.
  size_t rx_bytes;
  // Outgoing frame.
  uint8_t *tx;
  // At least `SR_FRAME_BYTES`.
  size_t tx_bytes;
  // Work space: what the largest program to run needs. `sr_fits` says whether a program fits,
  // `sr_error_text` how many words it needs.
  uint32_t *work;
  // Its words.
  size_t work_words;
  // The input of the inference under way.
  int16_t *input;
  // At least the values of the pool's inputs.
  size_t input_values;
  // Tokens of a linear gate that are masked at a time, 4 say: more take more work space and
  // less computing.
  uint16_t tile;
  // Spent counters.
  struct sr_counters counters;
  // Randomness.
  struct sr_random random;
} sr_config;

// Where the link's bytes go and come from.
typedef struct sr_buffers {
  // The next bytes from the link belong here.
  uint8_t *wanted;
  // At most this many, 0 for none. Their number goes to `sr_received`.
  size_t wanted_bytes;
  // These bytes wait to go out.
  const uint8_t *pending;
  // This many, 0 for none. How many of them went goes to `sr_sent`.
  size_t pending_bytes;
} sr_buffers;

// What a device asks for.
typedef struct sr_request {
  // `SR_ROUTER`, or one model's number.
  uint8_t program;
  // Weight of cost in the router's choice, in 1/256, or `SR_LAMBDA_RECOMMENDED`; 0 asks for accuracy whatever it costs.
  uint16_t lambda;
  // Bytes a second of the link in use, for the router to reckon with; 92160 for a fast UART.
  uint32_t bytes_per_second;
  // Its round trip in microseconds.
  uint32_t round_trip_us;
} sr_request;

// What the server serves.
typedef struct sr_pool_info {
  // Values of an input.
  uint16_t input_values;
  // Signed bits of an input value.
  uint8_t input_bits;
  // An input value `v` stands for `v / 2^input_frac`.
  uint8_t input_frac;
  // Classes of an answer.
  uint16_t classes;
  // Bit `i` says that program `i` exists.
  uint16_t programs;
} sr_pool_info;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Bytes of a session, for a program that does not trust its header.
size_t sr_session_bytes(void);

// Opens a session in `session`; the first bytes to send are pending at once. `session_bytes` is
// `sizeof(sr_session)`. Nothing is kept after an error.
int32_t sr_open(struct sr_session *session, size_t session_bytes, const struct sr_config *config);

// Tells where bytes of the link go and come from. What it tells holds until the next call.
int32_t sr_io(struct sr_session *session, struct sr_buffers *buffers);

// Reports that `count` bytes from the link are where `sr_io` wanted them. Returns an event, or an
// error, after which the session is closed.
int32_t sr_received(struct sr_session *session, size_t count);

// Reports that the first `count` pending bytes went out. Returns an event, or an error, after
// which the session is closed.
int32_t sr_sent(struct sr_session *session, size_t count);

// Reports that the link ended or failed. Returns the error that this is; the session is closed.
int32_t sr_link_ended(struct sr_session *session);

// Prepares the next inference of a program: `SR_EVENT_PREPARED` follows. An error before anything
// was sent leaves the session as it was.
int32_t sr_prepare(struct sr_session *session, uint8_t program);

// Answers an input of `count` values: `SR_EVENT_ANSWER` follows, after `SR_EVENT_ROUTED` if the
// router was asked and does not answer itself. The input may be overwritten after the return. An error before anything was
// sent leaves the session as it was.
int32_t sr_infer(struct sr_session *session,
                 const struct sr_request *request,
                 const int16_t *input,
                 size_t count);

// The program of the last `SR_EVENT_PREPARED`, `SR_EVENT_ROUTED` or `SR_EVENT_ADVISED`, or the
// reason of the last `SR_EVENT_REFUSED`.
int32_t sr_detail(struct sr_session *session);

// The program that gave the last answer: the model that was asked for, or that the router chose.
int32_t sr_answered_by(struct sr_session *session);

// The class of the last answer.
int32_t sr_class(struct sr_session *session);

// Writes the logits of the last answer, at the scale of the accumulators, and returns their
// number. A server that gives labels only has 1 for the class and 0 for the others.
int32_t sr_logits(struct sr_session *session, int32_t *logits, size_t room);

// Inferences in stock for a program.
int32_t sr_ready(struct sr_session *session, uint8_t program);

// Once ready: 0 if a program fits the lent memory, else an error. `sr_error_text` then says which
// buffer is too small and what it needs.
int32_t sr_fits(struct sr_session *session, uint8_t program);

// Tells which pool the server serves, once ready.
int32_t sr_pool(struct sr_session *session, struct sr_pool_info *pool);

// Writes the name of a program of the pool, cut to `room` bytes with its NUL.
int32_t sr_program_name(struct sr_session *session, uint8_t program, char *name, size_t room);

// Writes what the session's last error was, cut to `room` bytes with its NUL. This links the
// library's formatting; `sr_describe` does with less.
int32_t sr_error_text(struct sr_session *session, char *text, size_t room);

// Says what an error is, in a text that stays.
const char *sr_describe(int32_t code);

// Ends the session and wipes it and the memory it was lent, which are the caller's again. Without
// an open session, it does nothing but say so.
int32_t sr_close(struct sr_session *session);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SECURE_ROUTER_H */
