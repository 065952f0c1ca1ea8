/* A driver for one request at a time on a virtio block device. */
#pragma once
#include "guest.h"

#define SLOT(n) (0x10001000ul + (n) * 0x1000ul)
#define REG(base, offset) (*(volatile u32 *)((base) + (offset)))
#define QUEUE 8

struct descriptor { u64 address; u32 len; uint16_t flags, next; };
static struct descriptor descriptors[QUEUE] __attribute__((aligned(16)));
static volatile uint16_t available[2 + QUEUE + 1] __attribute__((aligned(4)));
static volatile struct { uint16_t flags, index; struct { u32 id, len; } ring[QUEUE]; } used __attribute__((aligned(4)));
static struct { u32 type, reserved; u64 sector; } header;
static volatile unsigned char status;
static u64 buffer[128];

static void set_address(u64 base, u64 offset, const volatile void *at) {
    REG(base, offset) = (u64)at;
    REG(base, offset + 4) = (u64)at >> 32;
}

/* Finds the disk and makes its queue ready; gives its registers. */
static u64 start_disk(void) {
    u64 base = 0;
    for (int slot = 0; slot < 8 && !base; slot++)
        if (REG(SLOT(slot), 0) == 0x74726976 && REG(SLOT(slot), 8) == 2) base = SLOT(slot);
    expect("a disk", base != 0, 1);
    REG(base, 0x70) = 0;
    REG(base, 0x70) = 3;
    REG(base, 0x24) = 1;
    REG(base, 0x20) = 1;
    REG(base, 0x24) = 0;
    REG(base, 0x20) = 1 << 9;
    REG(base, 0x70) = 11;
    expect("features", REG(base, 0x70), 11);
    REG(base, 0x30) = 0;
    REG(base, 0x38) = QUEUE;
    set_address(base, 0x80, descriptors);
    set_address(base, 0x90, available);
    set_address(base, 0xa0, &used);
    REG(base, 0x44) = 1;
    REG(base, 0x70) = 15;
    return base;
}

/* Hands over a request. */
static void submit(u64 base, u32 type, u64 sector, u32 len) {
    header.type = type;
    header.sector = sector;
    status = 255;
    descriptors[0] = (struct descriptor){(u64)&header, 16, 1, 1};
    descriptors[1] = (struct descriptor){(u64)buffer, len, type == 0 ? 3 : 1, 2};
    if (!len) descriptors[0].next = 2;
    descriptors[2] = (struct descriptor){(u64)&status, 1, 2, 0};
    uint16_t index = available[1];
    available[2 + index % QUEUE] = 0;
    asm volatile("fence" ::: "memory");
    available[1] = index + 1;
    asm volatile("fence" ::: "memory");
    REG(base, 0x50) = 0;
}

/* One request, waited for; 255 when the device gave no status. */
static inline int request(u64 base, u32 type, u64 sector, u32 len) {
    submit(base, type, sector, len);
    while (used.index != available[1]) asm volatile("" ::: "memory");
    REG(base, 0x64) = REG(base, 0x60);
    return status;
}
