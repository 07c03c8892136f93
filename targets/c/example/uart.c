// Arm's CMSDK UART, which has no FIFO, with a receive interrupt and a ring.
#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define DATA REGISTER(0x40004000)
#define STATE REGISTER(0x40004004)
#define CTRL REGISTER(0x40004008)
#define INTCLEAR REGISTER(0x4000400c)
#define BAUDDIV REGISTER(0x40004010)
#define NVIC_ENABLE REGISTER(0xe000e100)
#define NVIC_DISABLE REGISTER(0xe000e180)
#define SYSTICK_CTRL REGISTER(0xe000e010)
#define SYSTICK_LOAD REGISTER(0xe000e014)

#define TX_FULL 1u
#define RX_FULL 2u
#define RX_OVERRUN 8u
#define RX_INTERRUPT 2u

#define CLOCK 25000000u
#define TICKS_A_SECOND 10u
#define PATIENCE (60u * TICKS_A_SECOND)
#define RING 512u

static volatile uint8_t ring[RING];
static volatile uint32_t head, tail, ticks, lost;

void clock_tick(void) { ticks++; }

void uart_start(void) {
    BAUDDIV = CLOCK / 115200;
    CTRL = 0xb; // transmit, receive, interrupt on receive
    (void)DATA;
    SYSTICK_LOAD = CLOCK / TICKS_A_SECOND - 1;
    SYSTICK_CTRL = 7;
    NVIC_ENABLE = 1;
}

void uart_interrupt(void) {
    if (STATE & RX_OVERRUN) {
        STATE = RX_OVERRUN;
        lost = 1;
    }
    if (head - tail == RING) {
        // The next byte and its interrupt wait until there is room; a real line needs RTS for this.
        NVIC_DISABLE = 1;
        return;
    }
    INTCLEAR = RX_INTERRUPT;
    if (STATE & RX_FULL) {
        ring[head % RING] = (uint8_t)DATA;
        head++;
    }
}

void uart_send(const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        while (STATE & TX_FULL) {}
        DATA = bytes[i];
    }
}

size_t uart_receive(uint8_t *bytes, size_t room) {
    uint32_t start = ticks;
    // An interrupt between the question and the sleep still ends the sleep.
    for (;;) {
        __asm__ volatile("cpsid i" ::: "memory");
        if (head != tail || lost || ticks - start > PATIENCE) break;
        __asm__ volatile("wfi\ncpsie i" ::: "memory");
    }
    size_t count = 0;
    while (!lost && count < room && head != tail) {
        bytes[count++] = ring[tail % RING];
        tail++;
    }
    NVIC_ENABLE = 1;
    __asm__ volatile("cpsie i" ::: "memory");
    return count;
}
