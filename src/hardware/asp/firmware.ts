/**
 * The state of the SNP firmware, and what its commands share: addresses that the host hands in, the states of pages, reads and writes of host memory. The handlers of
 * commands are in the files beside this one; secure-processor.ts is the mailbox.
 *
 * Firmware reads and writes host pages without a key. It sees an address through the RMP as `default` when the RMP does not cover it, and refuses the RMP's own pages
 * (AMD's firmware source, get_rmp_paddr).
 */
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';
import type { Entropy } from '../../base/entropy.ts';
import type { Trace } from '../../base/trace.ts';
import type { Chip, SigningKey } from '../chip.ts';
import { FRAME_FLAG, type HostMemory } from '../memory/host-memory.ts';
import { type PageState, pageStateOf, type Rmp, type RmpEntry } from '../memory/rmp.ts';
import { Asids } from './asids.ts';
import { CpuidRules } from './cpuid-rules.ts';
import type { GuestContext } from './guest-context.ts';

/** `rmp`: the page is part of the RMP itself. `default`: the RMP does not cover it. */
export type AddressState = PageState | 'default' | 'rmp';

export interface MachineOptions {
  readonly memory: HostMemory;
  readonly chip: Chip;
  readonly entropy: Entropy;
  readonly trace: Trace;
  /** Simultaneous multithreading is on. */
  readonly smt?: boolean;
  readonly sockets?: number;
}

/** A command buffer in firmware's own memory. */
export interface CommandBuffer {
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
}

/** No memory is here, and a number still holds every address below. */
const BEYOND = 1n << 52n;
const NO_PAGE = new Uint8Array(PAGE_SIZE);

export class Firmware {
  readonly memory: HostMemory;
  readonly chip: Chip;
  readonly entropy: Entropy;
  readonly trace: Trace;
  readonly smt: boolean;
  readonly sockets: number;
  readonly asids: Asids;
  readonly cpuidRules: CpuidRules;
  /** SNP_INIT was done. */
  isInitialised = false;
  /** TCB_VERSION of who initialised the RMP; undefined: nobody. */
  rmpTcb: bigint | undefined;
  guestCount = 0;
  isChipIdMasked = false;
  isChipKeyMasked = false;
  /** RAPL_DIS and CIPHERTEXT_HIDING_EN of SNP_INIT_EX. */
  isRaplDisabled = false;
  isCiphertextHidden = false;
  vlek: { readonly sticks: Uint8Array; readonly key: SigningKey } | undefined;
  /** By the frame of the context page. */
  readonly contexts = new Map<number, GuestContext>();
  /** Under this key of the memory controller lie context pages. */
  readonly #contextKey: number;
  /** What of an address's high word is not the C-bit. */
  readonly #highMask: number;
  /** Where memory starts that the host has. */
  readonly #firstByte: number;
  readonly #endByte: number;

  constructor(options: MachineOptions) {
    this.memory = options.memory;
    this.chip = options.chip;
    this.entropy = options.entropy;
    this.trace = options.trace;
    this.smt = options.smt ?? true;
    this.sockets = options.sockets ?? 1;
    this.asids = new Asids(options.chip.personality.maxAsid);
    this.cpuidRules = new CpuidRules(options.chip.personality);
    this.#highMask = ~(1 << (options.chip.personality.cBit - 32));
    this.#endByte = this.memory.frameCount * PAGE_SIZE;
    this.#firstByte = this.memory.rmp?.end ?? 0;
    this.#contextKey = this.newMemoryKey(32);
  }

  /** The RMP; only after SNP_INIT, which refuses a machine that has none. */
  get rmp(): Rmp {
    return this.memory.rmp!;
  }

  /** A fresh random key of the memory controller, 32 or 64 bytes. */
  newMemoryKey(size: 32 | 64): number {
    const key = new Uint8Array(size);
    this.entropy.fill(key);
    const id = this.memory.encryption.addKey(key);
    key.fill(0);
    return id;
  }

  /** A system physical address of a command buffer as a number, without the C-bit. What is too big for one stays beyond all memory, with its bits 11:0. */
  address(value: bigint): Spa {
    const plain = value & ~(1n << BigInt(this.chip.personality.cBit));
    return (plain >= BEYOND ? Number(BEYOND | (plain & 0xfffn)) : Number(plain)) as Spa;
  }

  /** The same, of the two words of the address. */
  addressOfWords(low: number, high: number): Spa {
    const plain = high & this.#highMask;
    return (plain >>> 20 === 0 ? low + plain * 0x1_0000_0000 : Number(BEYOND) + (low & 0xfff)) as Spa;
  }

  /** A frame's entry as it stands in the table: inside of a 2 MiB page it is Reclaim to firmware, whosever the page is. */
  entryOf(frame: Pfn): RmpEntry {
    return this.rmp.entryAt(this.rmp.ownIndexOf(frame));
  }

  /** The state of the page that `address` is in, by that entry. The machine's own frames below the RMP count as the RMP's. */
  stateOf(address: Spa): AddressState {
    if (address < this.rmp.end) return 'rmp';
    const frame = Math.floor(address / PAGE_SIZE);
    return this.hasFrame(frame) ? pageStateOf(this.entryOf(frame as Pfn)) : 'default';
  }

  /** Whether a frame is memory: below the end, and nothing that a chip keeps inside. */
  hasFrame(frame: number): boolean {
    return frame < this.memory.frameCount && (this.memory.frameFlags[frame]! & FRAME_FLAG.SILICON) === 0;
  }

  /** Whether `size` bytes from `address` on are memory that firmware may touch for the host: not the RMP, nor the machine's own frames below it. */
  isMemory(address: Spa, size: number): boolean {
    const end = address + size;
    if (!(Number.isInteger(address) && address >= this.#firstByte && end <= this.#endByte)) return false;
    // Host memory ends at 4 GiB at the latest.
    const last = (end - 1) >>> 12;
    for (let frame = address >>> 12; frame <= last; frame++) if (!this.hasFrame(frame)) return false;
    return true;
  }

  /**
   * The guest of a context page, or the status that says why there is none: INVALID_PARAM for the RMP's own pages, INVALID_GUEST for a page that is no context.
   */
  context(address: Spa): GuestContext | number {
    // Nobody but firmware can change a context page's entry.
    const context = this.contexts.get(address / PAGE_SIZE);
    if (context !== undefined) return context;
    const state = this.stateOf(address);
    return state === 'rmp' ? SEV_STATUS.INVALID_PARAM : SEV_STATUS.INVALID_GUEST;
  }

  /**
   * Whether firmware may write its answer to the page of `address`: SUCCESS, or the status. Only firmware's own pages and such as the RMP does not cover, once SNP is
   * initialised.
   */
  checkAnswerPage(address: Spa): number {
    if (!this.isInitialised) return SEV_STATUS.SUCCESS;
    const state = this.stateOf(address);
    if (state === 'rmp') return SEV_STATUS.INVALID_PARAM;
    return state === 'firmware' || state === 'default' ? SEV_STATUS.SUCCESS : SEV_STATUS.INVALID_PAGE_STATE;
  }

  /** Reads what a host sees. Returns a status. */
  read(address: Spa, into: Uint8Array): number {
    if (!this.isMemory(address, into.length)) return SEV_STATUS.INVALID_ADDRESS;
    this.memory.encryption.readUnder(0, address, into);
    return SEV_STATUS.SUCCESS;
  }

  /** Writes what a host sees. Returns a status. */
  write(address: Spa, from: Uint8Array): number {
    if (!this.isMemory(address, from.length)) return SEV_STATUS.INVALID_ADDRESS;
    this.memory.encryption.writeUnder(0, address, from);
    return SEV_STATUS.SUCCESS;
  }

  /** Puts an empty context under firmware's key into a frame. */
  adoptContextPage(frame: Pfn, context: GuestContext): void {
    this.#blank(frame);
    this.memory.encryption.adopt(frame, this.#contextKey);
    this.contexts.set(frame, context);
  }

  /** The context is gone; its page holds zeros. */
  releaseContextPage(frame: Pfn): void {
    this.contexts.get(frame)?.wipe();
    this.contexts.delete(frame);
    this.#blank(frame);
  }

  #blank(frame: Pfn): void {
    this.memory.encryption.open(frame, 0);
    this.memory.encryption.writeUnder(0, (frame * PAGE_SIZE) as Spa, NO_PAGE);
  }

  /** Tells who watches that a page is in another state now. */
  tracePage(frame: number, what: PageState, why: string, pages = 1): void {
    this.trace.emit({ kind: 'page', who: 'firmware', what, why, pfn: frame, pages });
  }
}

/** Whether a reserved field is all zero. */
export const isZero = (bytes: Uint8Array): boolean => bytes.every((byte) => byte === 0);

/** Whether bits 11:0 of a page's address are zero, as commands demand. */
export const isPage = (address: number): boolean => address % PAGE_SIZE === 0;
