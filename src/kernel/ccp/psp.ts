/**
 * The driver of the secure processor (Linux drivers/crypto/ccp/sev-dev.c): it initialises SNP, issues commands, and lends firmware pages to write its answers to. A page
 * that firmware does not give back is leaked, for good, and counted (snp_leak_pages).
 *
 * Left out: commands of SEV without SNP, the HV-Fixed ranges (this host has none), firmware download.
 */
import { SEV_CMD, SNP_INIT_FLAG, snpAddress, snpInitEx, snpShutdownEx } from '../../abi/sev-firmware.ts';
import { SEV_RET_NO_FW_CALL, SEV_STATUS } from '../../abi/sev-status.ts';
import { type Pfn, type Spa, spaOf } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import type { HostMemory } from '../../hardware/memory/host-memory.ts';
import { makeFirmware, makeShared } from '../host-rmp.ts';

/** The mailbox of the secure processor (hardware/asp). */
export interface Mailbox {
  /** Executes a command with its buffer at `buffer`. Returns the firmware's status. */
  execute(command: number, buffer: Spa): number;
  /** Every core has executed WBINVD. */
  cachesWrittenBack(): void;
}

const LEVEL_4K = 1;
const NO_PFN = -1 as Pfn;
const X86_SHUTDOWN = 3;
const PAGE_SIZE = 4096;

export class Psp {
  readonly memory: HostMemory;
  /** Pages that are lost until the machine is reset. */
  readonly #leaked = new Set<number>();
  /** SNP is initialised. */
  initialised = false;
  readonly #mailbox: Mailbox;
  /** Where command buffers lie: a page of the kernel's own. */
  #buffer = NO_PFN;

  constructor(memory: HostMemory, mailbox: Mailbox) {
    this.memory = memory;
    this.#mailbox = mailbox;
  }

  /** How many pages are lost. */
  get leakedPages(): number {
    return this.#leaked.size;
  }
  isLeaked(frame: Pfn): boolean {
    return this.#leaked.has(frame);
  }

  /** SNP_INIT_EX with a new RMP, and a first DF_FLUSH. Errors: ENOMEM, EIO. */
  initialise(): void {
    if (this.initialised) return;
    const frame = this.memory.allocate(0, this.memory.owner('psp'));
    if (frame < 0) throw new LinuxError('ENOMEM', 'no frame for the command buffer of the secure processor');
    this.#buffer = frame as Pfn;
    const init = snpInitEx.encode({ flags: SNP_INIT_FLAG.INIT_RMP });
    this.#demand('SNP_INIT_EX', this.command(SEV_CMD.SNP_INIT_EX, init));
    this.#demand('SNP_DF_FLUSH', this.flushDataFabric());
    this.initialised = true;
  }

  /** A command that is part of initialising: EIO, and nothing kept, where it failed. */
  #demand(command: string, status: number): void {
    if (status === SEV_STATUS.SUCCESS) return;
    this.#freeBuffer();
    throw new LinuxError('EIO', `${command}: firmware status 0x${status.toString(16)}`);
  }

  /** SNP_SHUTDOWN_EX. Guests are gone. */
  shutDown(): void {
    if (!this.initialised) return;
    this.flushDataFabric();
    this.command(
      SEV_CMD.SNP_SHUTDOWN_EX,
      snpShutdownEx.encode({ length: snpShutdownEx.size, flags: X86_SHUTDOWN }),
    );
    this.initialised = false;
    this.#freeBuffer();
  }

  /** WBINVD on all cores, then SNP_DF_FLUSH: ASIDs that guests gave back can be used again. Returns a status. */
  flushDataFabric(): number {
    this.#mailbox.cachesWrittenBack();
    return this.command(SEV_CMD.SNP_DF_FLUSH);
  }

  /** Issues a command; firmware may write to `buffer` too. Returns its status; SEV_RET_NO_FW_CALL where there is no firmware to ask. */
  command(command: number, buffer?: Uint8Array): number {
    if (this.#buffer === NO_PFN) return SEV_RET_NO_FW_CALL;
    const at = spaOf(this.#buffer);
    if (buffer !== undefined) this.memory.write(at, buffer);
    return this.#mailbox.execute(command, buffer === undefined ? (0 as Spa) : at);
  }

  /** Issues a command that takes the address of a page to write an answer to; `into` gets its first bytes. `build` makes the command buffer. */
  ask(command: number, into: Uint8Array, build: (answer: bigint) => Uint8Array): number {
    const frame = this.allocatePage();
    if (frame === NO_PFN) return SEV_STATUS.RESOURCE_LIMIT;
    const status = this.command(command, build(BigInt(spaOf(frame))));
    if (status === SEV_STATUS.SUCCESS) this.takePage(frame, into);
    else this.freePage(frame);
    return status;
  }

  /** Issues a command that answers in its own buffer: `bytes` become the answer, whatever the status. */
  exchange(command: number, bytes: Uint8Array): number {
    const frame = this.memory.allocate(0, this.memory.owner('psp'));
    if (frame < 0) return SEV_STATUS.RESOURCE_LIMIT;
    const page = frame as Pfn;
    this.memory.write(spaOf(page), bytes);
    if (makeFirmware(this.memory, page) !== 0) {
      this.memory.free(page, 0);
      return SEV_STATUS.RESOURCE_LIMIT;
    }
    const status = this.#mailbox.execute(command, spaOf(page));
    this.takePage(page, bytes);
    return status;
  }

  /** Issues a command that takes the address of bytes to read. `build` makes the command buffer. */
  tell(command: number, bytes: Uint8Array, build: (at: bigint) => Uint8Array): number {
    const frame = this.memory.allocate(0, this.memory.owner('psp'));
    if (frame < 0) return SEV_STATUS.RESOURCE_LIMIT;
    this.memory.write(spaOf(frame as Pfn), bytes);
    const status = this.command(command, build(BigInt(spaOf(frame as Pfn))));
    this.memory.free(frame as Pfn, 0);
    return status;
  }

  /** A page that is firmware's (snp_alloc_firmware_page); NO_PFN when there is none. */
  allocatePage(): Pfn {
    const frame = this.memory.allocate(0, this.memory.owner('psp'));
    if (frame < 0) return NO_PFN;
    if (makeFirmware(this.memory, frame as Pfn) === 0) return frame as Pfn;
    this.memory.free(frame as Pfn, 0);
    return NO_PFN;
  }

  /** Gives a firmware page back to the kernel's allocator (snp_free_firmware_page). */
  freePage(frame: Pfn): void {
    if (this.reclaim(frame)) this.memory.free(frame, 0);
  }

  /** What firmware wrote to a page of its own, which goes back to the kernel's allocator. */
  takePage(frame: Pfn, into: Uint8Array): void {
    if (!this.reclaim(frame)) return;
    this.memory.read(spaOf(frame), into);
    this.memory.free(frame, 0);
  }

  /** Takes a page back from firmware: SNP_PAGE_RECLAIM, then RMPUPDATE. False: it is leaked. */
  reclaim(frame: Pfn): boolean {
    const status = this.command(
      SEV_CMD.SNP_PAGE_RECLAIM,
      snpAddress.encode({ address: BigInt(frame * PAGE_SIZE) }),
    );
    if (status === SEV_STATUS.SUCCESS && makeShared(this.memory, frame, LEVEL_4K) === 0) return true;
    this.leak(frame);
    return false;
  }

  /** Notes pages that cannot be had back (snp_leak_pages). */
  leak(frame: Pfn, pages = 1): void {
    for (let i = 0; i < pages; i++) this.#leaked.add(frame + i);
  }

  #freeBuffer(): void {
    this.memory.free(this.#buffer, 0);
    this.#buffer = NO_PFN;
  }
}
