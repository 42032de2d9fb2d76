/*
 * Proves what it is: asks firmware for an attestation report over 64 bytes that the host chose (--guest-data), by the extended guest request, which brings the host's
 * certificates along, and prints both. Message keys and sequence numbers are those of the secrets page; the rules of use are Linux' drivers/virt/coco/sev-guest (reference
 * facts 3.5 and 6.1): never another message under a sequence number that firmware may have seen.
 */
#include "gcm.h"
#include "snp/snp.h"

#define SHARED (4 * MIB)
#define REQUEST SHARED
#define RESPONSE (SHARED + PAGE)
#define CERTIFICATES (SHARED + LARGE_PAGE)
#define CERTIFICATES_MAX 64ul

#define VMPCK0 0x20
#define SEQUENCE0 0xa0

#define MESSAGE_REPORT_REQUEST 5
#define AEAD_AES_256_GCM 1
#define AUTHENTICATED_AT 0x30
#define HEADER_SIZE 0x60
#define REPORT_SIZE 0x4a0

#define VMM_INVALID_LENGTH 1
#define VMM_BUSY 2
#define BUSY_TRIES 1000

struct message {
    u8 tag[32];
    u64 sequence, reserved0;
    u8 algorithm, header_version;
    u16 header_size;
    u8 type, version;
    u16 size;
    u32 reserved1;
    u8 key, reserved2[35];
    u8 payload[PAGE - HEADER_SIZE];
};
_Static_assert(sizeof(struct message) == PAGE, "a message is a page");

struct report_request {
    u8 data[64];
    u32 vmpl, key_select;
    u8 reserved[24];
};
struct report_response {
    u32 status, size;
    u8 reserved[24];
    u8 report[REPORT_SIZE];
};

/* Messages are made and opened here, where the host cannot reach them, and copied. */
static struct message request, response;
static const u8 *key = (const u8 *)(BOOT_SECRETS + VMPCK0);
static volatile u32 *sequence = (volatile u32 *)(BOOT_SECRETS + SEQUENCE0);

static void initialise(u8 iv[12], u64 number) {
    for (int i = 0; i < 12; i++) iv[i] = i < 8 ? (u8)(number >> 8 * i) : 0;
}

static void fail(const char *what, u64 number) {
    printf("attester: %s: 0x%lx\n", what, number);
    exit(1);
}

static void seal(u64 number, u8 type, const void *payload, u16 size) {
    u8 iv[12];
    memset(&request, 0, sizeof request);
    request.sequence = number;
    request.algorithm = AEAD_AES_256_GCM;
    request.header_version = 1;
    request.header_size = HEADER_SIZE;
    request.type = type;
    request.version = 1;
    request.size = size;
    memcpy(request.payload, payload, size);
    initialise(iv, number);
    gcm_seal(key, iv, (const u8 *)&request + AUTHENTICATED_AT, HEADER_SIZE - AUTHENTICATED_AT, request.payload, size, request.tag);
    memcpy((void *)REQUEST, &request, PAGE);
}

/* The answer to the message `number` must be the next number and the next type; anything else the host made up. */
static void open(u64 number, u8 type, u16 size) {
    u8 iv[12];
    memcpy(&response, (const void *)RESPONSE, PAGE);
    if (response.sequence != number + 1) fail("sequence number of the answer", response.sequence);
    if (response.type != type + 1 || response.version != 1) fail("type of the answer", response.type);
    if (response.size != size) fail("size of the answer", response.size);
    initialise(iv, number + 1);
    if (!gcm_open(key, iv, (const u8 *)&response + AUTHENTICATED_AT, HEADER_SIZE - AUTHENTICATED_AT, response.payload, size, response.tag))
        fail("tag of the answer", number + 1);
}

/* Hands the message to the host, again while it is busy. SW_EXITINFO2. */
static u64 issue(u64 event, u64 *pages) {
    u64 outcome = 0;
    for (unsigned tries = 0; tries < BUSY_TRIES; tries++) {
        if (event == EVENT_EXTENDED_GUEST_REQUEST) {
            ghcb_set(GHCB_RAX, CERTIFICATES);
            ghcb_set(GHCB_RBX, *pages);
        }
        u32 answer = ghcb_event(event, REQUEST, RESPONSE);
        outcome = ghcb_get(GHCB_INFO2);
        if (answer != 0) fail("the host finds the request malformed", outcome);
        if (outcome >> 32 != VMM_BUSY) break;
    }
    if (outcome >> 32 == VMM_INVALID_LENGTH) *pages = ghcb_get(GHCB_RBX);
    return outcome;
}

/*
 * The report over `data`. Where the certificates need more room than `*pages`, firmware has not seen the message; it is used up by a plain request, as Linux does, since
 * the host may say anything.
 * 0: done; 1: again, with as many pages as `*pages` says now.
 */
static int get_report(const u8 data[64], u64 *pages, struct report_response *report) {
    struct report_request payload;
    memset(&payload, 0, sizeof payload);
    memcpy(payload.data, data, 64);
    u64 number = *sequence + 1;
    if (number > 0xfffffffeul) fail("no sequence number is left", number);
    seal(number, MESSAGE_REPORT_REQUEST, &payload, sizeof payload);
    u64 outcome = issue(EVENT_EXTENDED_GUEST_REQUEST, pages);
    int again = outcome >> 32 == VMM_INVALID_LENGTH;
    if (again) outcome = issue(EVENT_GUEST_REQUEST, pages);
    if (outcome != 0) fail("the request failed", outcome);
    open(number, MESSAGE_REPORT_REQUEST, sizeof *report);
    *sequence = (u32)(number + 1);
    memcpy(report, response.payload, sizeof *report);
    return again;
}

static char text[8192];
static void print_hex(const char *title, const u8 *bytes, u64 size) {
    printf("%s ", title);
    while (size > 0) {
        u64 now = size < sizeof text / 2 ? size : sizeof text / 2;
        for (u64 i = 0; i < now; i++) {
            text[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
            text[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
        }
        const char *from = text;
        u64 count = 2 * now;
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(0x3f8) : "memory");
        bytes += now;
        size -= now;
    }
    putc('\n');
}

/* Bytes of the table up to the end of its last certificate. It is the host's: nothing in it may be believed. */
static u64 table_size(const u8 *table, u64 room) {
    u64 end = 24;
    for (u64 at = 0; at + 24 <= room; at += 24) {
        int is_last = 1;
        for (int i = 0; i < 24; i++)
            if (table[at + i] != 0) is_last = 0;
        if (is_last) return at + 24 > end ? at + 24 : end;
        u64 offset = *(const u32 *)(table + at + 16), size = *(const u32 *)(table + at + 20);
        if (offset + size > room) fail("a certificate outside the table", offset + size);
        if (offset + size > end) end = offset + size;
    }
    fail("the table of certificates has no end", room);
    return 0;
}

int main(void) {
    u32 a, b, c, d;
    cpuid(1, 0, &a, &b, &c, &d);
    if ((c & (1u << 1 | 1u << 25)) != (1u << 1 | 1u << 25)) fail("no AES-NI or no PCLMULQDQ", c);
    validate_memory();
    make_shared(SHARED, 2);
    make_shared(CERTIFICATES, CERTIFICATES_MAX);

    u8 data[64] = {0};
    u64 given = HOST_PAGE->guest_data_size;
    for (u64 i = 0; i < given && i < 64; i++) data[i] = HOST_PAGE->guest_data[i];

    static struct report_response report;
    u64 pages = 0;
    while (get_report(data, &pages, &report))
        if (pages == 0 || pages > CERTIFICATES_MAX) fail("pages of certificates", pages);
    if (report.status != 0 || report.size != REPORT_SIZE) fail("firmware refused the report", report.status);
    if (memcmp(report.report + 0x50, data, 64) != 0) fail("the report is about other data", 0);
    print_hex("SNP-REPORT", report.report, REPORT_SIZE);

    static u8 table[CERTIFICATES_MAX * PAGE];
    u64 room = pages * PAGE;
    memcpy(table, (const void *)CERTIFICATES, room);
    if (room != 0) {
        u64 size = table_size(table, room);
        if (size > 24) print_hex("SNP-CERTIFICATES", table, size);
    }
    puts("attester: done");
    return 0;
}
