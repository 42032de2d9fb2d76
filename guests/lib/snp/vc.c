/*
 * The #VC handler (Linux arch/x86/coco/sev/vc-handle.c): what the hypervisor may not do with the guest's registers unasked, the guest asks for by its GHCB, instruction
 * by instruction. The exception's error code is the exit code.
 */
#pragma GCC target("general-regs-only")
#include "snp/snp.h"

void snp_vc(struct frame *frame);
void snp_deliver(struct frame *frame, u32 vector, u32 error);

#define IOIO_IN 1u
#define IOIO_STRING (1u << 2)
#define IOIO_REPEAT (1u << 3)
#define CR4_OSXSAVE (1u << 18)

/* An instruction's parts, as far as the handler needs them. */
struct instruction {
    const u8 *start, *at;
    u8 rex, is_word, is_repeated;
};

static struct instruction prefixes(const struct frame *frame) {
    struct instruction in = {(const u8 *)frame->rip, (const u8 *)frame->rip, 0, 0, 0};
    for (;; in.at++) {
        u8 byte = *in.at;
        if (byte == 0x66) in.is_word = 1;
        else if (byte == 0xf2 || byte == 0xf3) in.is_repeated = 1;
        else if (byte != 0x2e && byte != 0x36 && byte != 0x3e && byte != 0x26 && byte != 0x64 && byte != 0x65 && byte != 0x67) break;
    }
    if ((*in.at & 0xf0) == 0x40) in.rex = *in.at++;
    return in;
}

/* The host's verdict on an event: goes on, raises what it asks for, or ends. True: go on. */
static int accepted(struct frame *frame, u32 answer) {
    if (answer == 0) return 1;
    if (answer != 1) terminate(0, 0);
    u64 event = ghcb_get(GHCB_INFO2);
    u32 vector = event & 0xff;
    /* Only #GP and #UD may come this way, as exceptions. */
    if ((event >> 31 & 1) == 0 || (event >> 8 & 7) != 3 || (vector != 13 && vector != 6)) terminate(0, 0);
    snp_deliver(frame, vector, event & 0x800 ? (u32)(event >> 32) : 0);
    return 0;
}

static const struct cpuid_entry *cpuid_find(u32 leaf, u32 sub) {
    const struct cpuid_table *table = CPUID_TABLE;
    for (u32 i = 0; i < table->count && i < 64; i++) {
        const struct cpuid_entry *entry = &table->entries[i];
        if (entry->leaf == leaf && entry->sub == sub) return entry;
    }
    return 0;
}

/* A leaf without sub-leaves stands in the table with whatever index its maker gave it, which is 0. */
static int has_sub_leaves(u32 leaf) {
    return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0xf || leaf == 0x10 || leaf == 0x12 || leaf == 0x14 ||
           leaf == 0x17 || leaf == 0x18 || leaf == 0x1d || leaf == 0x1f || leaf == 0x8000001d || leaf == 0x80000020 || leaf == 0x80000026;
}

/* What the table leaves to the moment: CR4, and the vCPU's own ids, which only the host can tell. */
static void complete_cpuid(u32 leaf, u32 *b, u32 *c, u32 *d) {
    u64 cr4;
    switch (leaf) {
        case 1:
            *b = (*b & 0xffffff) | (u32)(ghcb_msr(1ul << 32 | 1ul << 30 | 4) >> 32 & 0xff000000);
            __asm__("mov %%cr4, %0" : "=r"(cr4));
            *c = (*c & ~(1u << 27)) | (cr4 & CR4_OSXSAVE ? 1u << 27 : 0);
            break;
        case 0xb:
            *d = (u32)(ghcb_msr(0xbul << 32 | 3ul << 30 | 4) >> 32);
            break;
        default:
    }
}

/* From the table that firmware checked at the launch; what is not in it is zero. */
static void vc_cpuid(struct frame *frame) {
    u32 leaf = (u32)frame->gpr[RAX], sub = (u32)frame->gpr[RCX];
    if (CPUID_TABLE->count == 0 || CPUID_TABLE->count > 64) terminate(1, END_CPUID);
    const struct cpuid_entry *entry = cpuid_find(leaf, has_sub_leaves(leaf) ? sub : 0);
    u32 b = 0, c = 0, d = 0;
    frame->gpr[RAX] = entry ? entry->a : 0;
    if (entry) {
        b = entry->b;
        c = entry->c;
        d = entry->d;
        complete_cpuid(leaf, &b, &c, &d);
    }
    frame->gpr[RBX] = b;
    frame->gpr[RCX] = c;
    frame->gpr[RDX] = d;
    frame->rip += 2;
}

static void vc_msr(struct frame *frame) {
    int is_write = ((const u8 *)frame->rip)[1] == 0x30;
    ghcb_set(GHCB_RCX, frame->gpr[RCX]);
    if (is_write) {
        ghcb_set(GHCB_RAX, frame->gpr[RAX]);
        ghcb_set(GHCB_RDX, frame->gpr[RDX]);
    }
    if (!accepted(frame, ghcb_event(EVENT_MSR, (u64)is_write, 0))) return;
    if (!is_write) {
        frame->gpr[RAX] = (u32)ghcb_get(GHCB_RAX);
        frame->gpr[RDX] = (u32)ghcb_get(GHCB_RDX);
    }
    frame->rip += 2;
}

static void vc_rdtsc(struct frame *frame, u64 code) {
    if (!accepted(frame, ghcb_event(code, 0, 0))) return;
    frame->gpr[RAX] = (u32)ghcb_get(GHCB_RAX);
    frame->gpr[RDX] = (u32)ghcb_get(GHCB_RDX);
    if (code == EVENT_RDTSCP) frame->gpr[RCX] = (u32)ghcb_get(GHCB_RCX);
    frame->rip += code == EVENT_RDTSCP ? 3 : 2;
}

/* INS and OUTS: as many elements an event as the GHCB's buffer holds, and again until the count is done. */
static void vc_string_io(struct frame *frame, struct instruction in, u32 info, u32 size) {
    u64 count = in.is_repeated ? frame->gpr[RCX] : 1;
    u8 *buffer = this_vcpu()->ghcb + GHCB_BUFFER;
    u64 now = GHCB_BUFFER_SIZE / size < count ? GHCB_BUFFER_SIZE / size : count;
    if (now != 0) {
        u64 *pointer = &frame->gpr[info & IOIO_IN ? RDI : RSI];
        u8 *memory = (u8 *)*pointer;
        if (!(info & IOIO_IN))
            for (u64 i = 0; i < now * size; i++) ((volatile u8 *)buffer)[i] = memory[i];
        ghcb_set(GHCB_SCRATCH, (u64)buffer);
        if (!accepted(frame, ghcb_event(EVENT_IOIO, info | IOIO_STRING | (in.is_repeated ? IOIO_REPEAT : 0), now))) return;
        if (info & IOIO_IN)
            for (u64 i = 0; i < now * size; i++) memory[i] = ((volatile u8 *)buffer)[i];
        *pointer += now * size;
        if (in.is_repeated) frame->gpr[RCX] = count - now;
    }
    if (now == count) frame->rip = (u64)(in.at + 1);
}

static void vc_ioio(struct frame *frame) {
    struct instruction in = prefixes(frame);
    u8 opcode = *in.at;
    u32 size = !(opcode & 1) ? 1 : in.is_word ? 2 : 4;
    int is_string = (opcode & 0xf0) == 0x60;
    int is_in = is_string ? !(opcode & 2) : !(opcode & 2);
    int has_port = !is_string && !(opcode & 8);
    u32 port = has_port ? in.at[1] : (u32)frame->gpr[RDX] & 0xffff;
    /* Address size 64. */
    u32 info = port << 16 | 1u << 9 | size << 4 | (is_in ? IOIO_IN : 0);
    if (is_string) {
        vc_string_io(frame, in, info, size);
        return;
    }
    u64 mask = size == 4 ? 0xffffffff : (1ul << size * 8) - 1;
    if (!is_in) ghcb_set(GHCB_RAX, frame->gpr[RAX] & mask);
    if (!accepted(frame, ghcb_event(EVENT_IOIO, info, 0))) return;
    if (is_in) {
        u64 value = ghcb_get(GHCB_RAX) & mask;
        frame->gpr[RAX] = size == 4 ? value : (frame->gpr[RAX] & ~mask) | value;
    }
    frame->rip = (u64)(in.at + (has_port ? 2 : 1));
}

static void vc_vmmcall(struct frame *frame) {
    ghcb_set(GHCB_RAX, frame->gpr[RAX]);
    ghcb_set(GHCB_CPL, 0);
    ghcb_set(GHCB_RBX, frame->gpr[RBX]);
    ghcb_set(GHCB_RCX, frame->gpr[RCX]);
    ghcb_set(GHCB_RDX, frame->gpr[RDX]);
    ghcb_set(0x330, frame->gpr[RSI]);
    if (!accepted(frame, ghcb_event(EVENT_VMMCALL, 0, 0))) return;
    frame->gpr[RAX] = ghcb_get(GHCB_RAX);
    frame->rip += 3;
}

/* The end of ModRM, SIB and displacement; `address` is what they say. */
static const u8 *operand(const struct frame *frame, struct instruction in, const u8 *modrm, u64 *address) {
    u8 mode = *modrm >> 6, base = *modrm & 7;
    const u8 *at = modrm + 1;
    u64 sum = 0;
    int is_relative = 0;
    if (base == 4) {
        u8 sib = *at++, index = (u8)((sib >> 3 & 7) | (in.rex & 2 ? 8 : 0));
        if (index != 4) sum = frame->gpr[index] << (sib >> 6);
        base = sib & 7;
        if (base != 5 || mode != 0) sum += frame->gpr[base | (in.rex & 1 ? 8 : 0)];
    } else if (base == 5 && mode == 0) {
        is_relative = 1;
    } else {
        sum = frame->gpr[base | (in.rex & 1 ? 8 : 0)];
    }
    if (mode == 1) sum += (u64)(s64) * (const signed char *)at++;
    else if (mode == 2 || (mode == 0 && base == 5)) {
        sum += (u64)(s64) * (const int *)at;
        at += 4;
        if (is_relative) sum += (u64)at;
    }
    *address = sum;
    return at;
}

/* MMIO by MOV between register and memory, MOV of an immediate, MOVZX, and MOV between RAX and an absolute address. Memory is mapped one to one, so addresses are the host's. */
static void vc_mmio(struct frame *frame) {
    struct instruction in = prefixes(frame);
    u8 opcode = *in.at++;
    int is_extended = opcode == 0x0f;
    if (is_extended) opcode = *in.at++;
    u32 size = !(opcode & 1) ? 1 : in.rex & 8 ? 8 : in.is_word ? 2 : 4;
    int is_zero_extension = is_extended && (opcode == 0xb6 || opcode == 0xb7);
    int is_absolute = !is_extended && opcode >= 0xa0 && opcode <= 0xa3;
    int is_store = !is_extended && (opcode == 0x88 || opcode == 0x89 || (is_absolute && opcode >= 0xa2)), is_immediate = !is_extended && (opcode == 0xc6 || opcode == 0xc7);
    int is_load = (!is_extended && (opcode == 0x8a || opcode == 0x8b || (is_absolute && opcode < 0xa2))) || is_zero_extension;
    if (!is_store && !is_immediate && !is_load) terminate(0, 0);
    if (is_zero_extension) size = opcode & 1 ? 2 : 1;
    const u8 *modrm = in.at;
    unsigned number = is_absolute ? RAX : (*modrm >> 3 & 7) | (in.rex & 4 ? 8 : 0);
    u64 address = is_absolute ? *(const u64 *)in.at : 0;
    const u8 *end = is_absolute ? in.at + 8 : operand(frame, in, modrm, &address);
    volatile u8 *buffer = this_vcpu()->ghcb + GHCB_BUFFER;
    /* AH to BH: bytes 1 of registers 0 to 3 where there is no REX. */
    int is_high = size == 1 && !is_zero_extension && !in.rex && number >= 4;
    u64 *target = &frame->gpr[is_high ? number - 4 : number];
    ghcb_set(GHCB_SCRATCH, (u64)buffer);
    if (is_load) {
        if (!accepted(frame, ghcb_event(EVENT_MMIO_READ, address, size))) return;
        u64 value = 0;
        for (unsigned i = 0; i < size; i++) value |= (u64)buffer[i] << i * 8;
        if (is_zero_extension || size >= 4) *target = value;
        else if (is_high) *target = (*target & ~0xff00ul) | value << 8;
        else *target = (*target & ~((1ul << size * 8) - 1)) | value;
    } else {
        u64 value = is_high ? *target >> 8 : *target;
        if (is_immediate) {
            value = size == 1 ? *end : size == 2 ? *(const u16 *)end : (u64)(s64) * (const int *)end;
            end += size == 1 ? 1 : size == 2 ? 2 : 4;
        }
        for (unsigned i = 0; i < size; i++) buffer[i] = (u8)(value >> i * 8);
        if (!accepted(frame, ghcb_event(EVENT_MMIO_WRITE, address, size))) return;
    }
    frame->rip = (u64)end;
}

void snp_vc(struct frame *frame) {
    switch (frame->error) {
        case EVENT_CPUID:
            vc_cpuid(frame);
            break;
        case EVENT_IOIO:
            vc_ioio(frame);
            break;
        case EVENT_MSR:
            vc_msr(frame);
            break;
        case EVENT_RDTSC:
        case EVENT_RDTSCP:
            vc_rdtsc(frame, frame->error);
            break;
        case EVENT_VMMCALL:
            vc_vmmcall(frame);
            break;
        case EVENT_WBINVD:
            if (accepted(frame, ghcb_event(EVENT_WBINVD, 0, 0))) frame->rip += 2;
            break;
        case EVENT_NPF:
            vc_mmio(frame);
            break;
        default:
            snp_deliver(frame, 29, (u32)frame->error);
    }
}
