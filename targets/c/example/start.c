// Vectors, and what runs before main.
#include <stdint.h>

#include "board.h"

extern uint32_t data_start[], data_end[], data_load[], bss_start[], bss_end[], stack_top[];

int main(void);
void reset(void);

static void fault(void) {
    host_say("hard fault\n");
    host_exit(70);
}

static void nothing(void) {}

__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    void (*exceptions[15])(void);
    void (*interrupts[1])(void);
} vectors = {
    stack_top,
    {reset, nothing, fault, fault, fault, fault, 0, 0, 0, 0, nothing, nothing, 0, nothing, clock_tick},
    {uart_interrupt},
};

void reset(void) {
    // The library was built for the floating-point unit's calling convention.
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20;
    __asm__ volatile("dsb\nisb");
    for (uint32_t *to = data_start, *from = data_load; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;) *to++ = 0;
    host_exit(main());
}
