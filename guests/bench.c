/* Compute benchmarks with checksums: integer work, random memory access, floating point. */
#include "guest.h"

/* How often; build.sh makes programs that do one kind of work for longer. */
#ifndef INTEGER
#define INTEGER 300
#define MEMORY 2000000
#define FLOATING 2000000
#endif

#define LIST 512
#define SIDE 24
#define TABLE (1 << 20)

struct node { struct node *next; u32 key; };
static struct node nodes[LIST];
static int a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];
static u64 table[TABLE];

static struct node *merge(struct node *x, struct node *y) {
    struct node head, *tail = &head;
    while (x && y) {
        if (x->key <= y->key) { tail->next = x; x = x->next; } else { tail->next = y; y = y->next; }
        tail = tail->next;
    }
    tail->next = x ? x : y;
    return head.next;
}

static struct node *sort(struct node *list, int count) {
    if (count == 1) { list->next = 0; return list; }
    struct node *half = list;
    for (int i = 0; i < count / 2; i++) half = half->next;
    struct node *right = sort(half, count - count / 2);
    return merge(sort(list, count / 2), right);
}

static u32 crc16(u32 crc, u32 byte) {
    crc ^= byte;
    for (int i = 0; i < 8; i++) crc = crc & 1 ? crc >> 1 ^ 0xa001 : crc >> 1;
    return crc;
}

/* List sort, matrix product, a state machine over text, and a bitwise checksum. */
static u64 integer(int rounds) {
    u64 seed = 1, hash = 0;
    static const char text[] = "12.5,-7,+3e4,0x1f,hello,99,-0.25,1e,";
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < LIST; i++) {
            nodes[i].key = next_random(&seed);
            nodes[i].next = i + 1 < LIST ? &nodes[i + 1] : 0;
        }
        u32 crc = 0xffff;
        for (struct node *n = sort(nodes, LIST); n; n = n->next) crc = crc16(crc, n->key & 0xff);
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++) { a[i][j] = i * round + j; b[i][j] = j - i; }
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++) {
                int sum = 0;
                for (int k = 0; k < SIDE; k++) sum += a[i][k] * b[k][j];
                c[i][j] = sum;
                crc = crc16(crc, sum & 0xff);
            }
        int state = 0, counts[5] = {0};
        for (int turn = 0; turn < 8; turn++)
            for (const char *p = text; *p; p++) {
                int digit = *p >= '0' && *p <= '9';
                if (*p == ',') { counts[state]++; state = 0; }
                else if (state == 0) state = digit ? 1 : *p == '+' || *p == '-' ? 2 : 4;
                else if (state == 1) state = digit ? 1 : *p == '.' ? 3 : 4;
                else if (state == 2) state = digit ? 1 : 4;
                else if (state == 3) state = digit ? 3 : 4;
            }
        for (int i = 0; i < 5; i++) crc = crc16(crc, counts[i]);
        hash = mix(hash, crc);
    }
    return hash;
}

static u64 memory(int rounds) {
    u64 seed = 2, hash = 0;
    for (int round = 0; round < rounds; round++) {
        u64 value = next_random(&seed);
        hash += table[value & (TABLE - 1)];
        table[value >> 32 & (TABLE - 1)] += value;
    }
    return hash;
}

static u64 floating(int rounds) {
    double x = 0.5, y = 1.25, sum = 0;
    int above = 0;
    for (int round = 0; round < rounds; round++) {
        x = x * 1.0000001 + 0.0000003;
        y = y / 1.0000002 + x * 0.125;
        sum += x - y * 0.5;
        if (sum > 1000.0) { sum -= 1000.0; above++; }
    }
    union { double d; u64 u; } bits = {.d = sum + x + y};
    return mix(bits.u, above);
}

int main(void) {
    u64 start = read_csr(minstret);
    put_line("integer", integer(INTEGER));
    u64 middle = read_csr(minstret);
    put_line("instructions", middle - start);
    put_line("memory", memory(MEMORY));
    u64 later = read_csr(minstret);
    put_line("instructions", later - middle);
    put_line("floating", floating(FLOATING));
    put_line("instructions", read_csr(minstret) - later);
    return 0;
}
