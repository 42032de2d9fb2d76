/*
 * The first SNP guest: says where it runs, takes its memory, gives pages to the host and takes them back, and checks that each page holds what it must.
 */
#include "snp/snp.h"

#define AREA (8 * MIB)
#define SECRET 0x5ec4e75ec4e7ul
#define PUBLIC 0x0be10be10be1ul

static int failures;

static void expect(const char *what, int holds) {
    if (holds) return;
    failures++;
    printf("WRONG: %s\n", what);
}

static void identity(void) {
    char vendor[13] = {0};
    u32 a, b, c, d;
    cpuid(0, 0, &a, &b, &c, &d);
    const u32 words[3] = {b, d, c};
    memcpy(vendor, words, 12);
    cpuid(1, 0, &a, &b, &c, &d);
    printf("Hello from an SNP guest: %lu MiB of RAM, %lu vCPUs, CPU %s, signature 0x%x\n", ram_top / MIB, HOST_PAGE->vcpus, vendor, a);
    u64 status = rdmsr(SEV_STATUS);
    printf("SEV_STATUS 0x%lx:%s%s%s\n", status, status & 1 ? " SEV" : "", status & 2 ? " ES" : "", status & 4 ? " SNP" : "");
    expect("SEV, SEV-ES and SNP are on", (status & 7) == 7);
    cpuid(0x8000001f, 0, &a, &b, &c, &d);
    printf("CPUID 8000001F: 0x%x, C-bit %u\n", a, b & 0x3f);
    u64 info = ghcb_msr(2);
    printf("GHCB protocol %lu to %lu, host features 0x%lx\n", info >> 32 & 0xffff, info >> 48, ghcb_msr(0x80) >> 12);
    expect("the C-bit is where the host says", (info >> 24 & 0xff) == (b & 0x3f));
    expect("an MSR that does not exist is #GP", rdmsr_safe(0x12345678, &info) == 13);
}

/* Out and back: the host sees what is written in between, and nothing else. */
static void convert(const char *name, u64 start, u64 pages) {
    u64 bytes = pages * PAGE;
    int before = failures;
    fill(start - PAGE, bytes + 2 * PAGE, SECRET);
    make_shared(start, pages);
    expect("a page that became shared is empty", first_other(start, bytes, 0) == 0);
    fill(start, bytes, PUBLIC);
    expect("shared bytes stay", first_other(start, bytes, PUBLIC) == 0);
    make_private(start, pages);
    expect("a page that became private is not what was shared", *(volatile u64 *)start != PUBLIC);
    fill(start, bytes, SECRET);
    expect("private bytes stay, neighbours too", first_other(start - PAGE, bytes + 2 * PAGE, SECRET) == 0);
    printf("%s to shared and back: %s\n", name, failures == before ? "as it should be" : "FAILED");
}

int main(void) {
    identity();
    u64 pages = validate_memory();
    printf("validated %lu pages\n", pages);
    expect("a page is validated once", pvalidate(AREA, 0, 1) == -1);
    convert("4K", AREA, 1);
    convert("300 pages", AREA + 3 * PAGE, 300);
    convert("2M", AREA + 2 * MIB, 512);
    convert("2M and 4K", AREA + 2 * MIB - PAGE, 513);
    puts(failures == 0 ? "snp-hello: all as it should be" : "snp-hello: FAILED");
    return failures == 0 ? 0 : 1;
}
