/** Flags of a RAM block, with the bits that QEMU gives them (include/system/memory.h). */

/** The caller supplies the host memory. */
export const RAM_PREALLOC = 1 << 0;
export const RAM_SHARED = 1 << 1;
export const RAM_RESIZEABLE = 1 << 2;
export const RAM_UF_ZEROPAGE = 1 << 3;
export const RAM_MIGRATABLE = 1 << 4;
export const RAM_PMEM = 1 << 5;
export const RAM_UF_WRITEPROTECT = 1 << 6;
export const RAM_NORESERVE = 1 << 7;
export const RAM_PROTECTED = 1 << 8;
export const RAM_NAMED_FILE = 1 << 9;
export const RAM_READONLY = 1 << 10;
export const RAM_READONLY_FD = 1 << 11;
/** The block has a guest_memfd for its private side (seed 000). */
export const RAM_GUEST_MEMFD = 1 << 12;
export const RAM_PRIVATE = 1 << 13;
