/**
 * How the driver reaches its host and its own memory: what Linux' sev-guest driver gets from the kernel around it (arch/x86/coco/sev/core.c: snp_issue_guest_request,
 * the secrets page, shared pages). Whoever has a guest hands one in.
 */

/** A page-aligned piece of memory that the host sees too. */
export interface SharedBuffer {
  readonly bytes: Uint8Array;
}

export interface GuestTransport {
  /** The secrets page, 4096 bytes; the driver writes its sequence numbers into it. */
  readonly secrets: Uint8Array;
  /** VM privilege level that the driver runs at. */
  readonly vmpl: number;
  /** `pages` shared pages. */
  allocateShared(pages: number): SharedBuffer;
  freeShared(buffer: SharedBuffer): void;
  /** SNP guest request: 4096 bytes each. Resolves to SW_EXITINFO2: firmware's status low, the host's error high. */
  request(request: SharedBuffer, response: SharedBuffer): Promise<bigint>;
  /** The same with room for certificates; `pages` is what the host wants (RBX of its answer). */
  extendedRequest(
    request: SharedBuffer,
    response: SharedBuffer,
    certificates: { buffer: SharedBuffer | undefined; pages: number },
  ): Promise<{ exitInfo2: bigint; pages: number }>;
  /** Waits; the driver sleeps so between tries. */
  sleep(milliseconds: number): Promise<void>;
  /** Milliseconds, for what times out. */
  now(): number;
}
