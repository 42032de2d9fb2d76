/** What kinds of memory access there are to a page walk. */
export const ACCESS = { READ: 0, WRITE: 1, FETCH: 2 } as const;

/**
 * Whose rights count: the current privilege level's (USER at CPL 3), or a supervisor's for accesses that the processor makes by
 * itself (descriptor tables, TSS, stacks of inner levels), which SMAP restricts whatever RFLAGS.AC says.
 */
export const PRIVILEGE = { USER: 0, SUPERVISOR: 1, IMPLICIT: 2 } as const;
