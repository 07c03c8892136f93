// The example's board: its UART and clock, and the host's files by semihosting.
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

void uart_start(void);
// Sends all bytes.
void uart_send(const uint8_t *bytes, size_t count);
// Waits for bytes and takes at most `room`. 0 if none came in time or one was lost.
size_t uart_receive(uint8_t *bytes, size_t room);
void uart_interrupt(void);
void clock_tick(void);

enum host_mode { HOST_READ = 1, HOST_UPDATE = 3, HOST_CREATE = 5 };
// A handle, or -1.
int host_open(const char *name, enum host_mode mode);
void host_close(int file);
// Reads up to `room` bytes; how many.
size_t host_read(int file, void *bytes, size_t room);
// Whether all bytes were written.
int host_write(int file, const void *bytes, size_t count);
// Whether the file is now at this place.
int host_seek(int file, size_t place);
void host_say(const char *text);
void host_exit(int code) __attribute__((noreturn));

#endif
