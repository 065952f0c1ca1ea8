/* What the bare-metal guests share: console, exit, registers, a seeded generator. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;

#define UART ((volatile unsigned char *)0x10000000)
#define FINISHER ((volatile u32 *)0x100000)

#define read_csr(name) ({ u64 value_; asm volatile("csrr %0, " #name : "=r"(value_)); value_; })
#define write_csr(name, value) asm volatile("csrw " #name ", %0" ::"r"((u64)(value)) : "memory")
#define set_csr(name, value) asm volatile("csrs " #name ", %0" ::"r"((u64)(value)) : "memory")
#define clear_csr(name, value) asm volatile("csrc " #name ", %0" ::"r"((u64)(value)) : "memory")

static inline void put_char(char c) { UART[0] = c; }

static inline void put_text(const char *text) {
    while (*text) put_char(*text++);
}

static inline void put_hex(u64 value) {
    for (int shift = 60; shift >= 0; shift -= 4) put_char("0123456789abcdef"[value >> shift & 15]);
}

static inline void put_line(const char *name, u64 value) {
    put_text(name);
    put_char(' ');
    put_hex(value);
    put_char('\n');
}

/* Ends the run with an exit code; 0 is success. */
static inline void finish(u32 code) {
    *FINISHER = code ? code << 16 | 0x3333 : 0x5555;
    for (;;) asm volatile("wfi");
}

static inline void expect(const char *what, u64 got, u64 wanted) {
    if (got == wanted) return;
    put_text("FAILED ");
    put_line(what, got);
    put_line("wanted", wanted);
    finish(1);
}

static inline u64 next_random(u64 *state) {
    u64 z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static inline u64 mix(u64 hash, u64 value) {
    hash = (hash ^ value) * 0x100000001b3;
    return hash ^ hash >> 29;
}

int main(void);
