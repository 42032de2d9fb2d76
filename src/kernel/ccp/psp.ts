/**
 * The driver of the secure processor (Linux drivers/crypto/ccp/sev-dev.c): it initialises SNP, issues commands, and lends firmware pages to write its answers to. A page
 * that firmware does not give back is leaked, for good, and counted (snp_leak_pages).
 *
 * What issues a command returns firmware's status, or −errno as __sev_do_cmd_locked does: ENODEV without the processor, EBUSY once it left a command unanswered
 * (psp_dead), ETIMEDOUT for that command; ENOMEM and EFAULT for pages that cannot be had, lent or had back. `report.error` becomes the status where firmware gave one,
 * and 0 where it did not answer.
 *
 * Left out: commands of SEV without SNP, the HV-Fixed ranges (this host has none), firmware download.
 */
import { SEV_CMD, SNP_INIT_FLAG, snpAddress, snpInitEx, snpShutdownEx } from '../../abi/sev-firmware.ts';
import { SEV_STATUS, sevStatusName } from '../../abi/sev-status.ts';
import { type Pfn, type Spa, spaOf } from '../../base/address.ts';
import { ERRNO, errnoName, LinuxError } from '../../base/errors.ts';
import { NO_ANSWER } from '../../hardware/asp/secure-processor.ts';
import type { HostMemory } from '../../hardware/memory/host-memory.ts';
import { makeFirmware, makeShared } from '../host-rmp.ts';

/** The mailbox of the secure processor (hardware/asp). */
export interface Mailbox {
  /** Executes a command with its buffer at `buffer`. Returns the firmware's status, or NO_ANSWER. */
  execute(command: number, buffer: Spa): number;
  /** Every core has executed WBINVD. */
  cachesWrittenBack(): void;
}

/** Who asked (psp_ret). */
export interface StatusReport {
  error?: number;
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
  /** Where command buffers lie: a page of the kernel's own. None: there is no processor to ask. */
  #buffer = NO_PFN;
  /** psp_dead */
  #dead = false;

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

  /** SNP_INIT_EX with a new RMP, and a first DF_FLUSH. Errors: ENOMEM, EIO, ETIMEDOUT. */
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

  /** A command that is part of initialising: nothing is kept where it failed. */
  #demand(command: string, status: number): void {
    if (status === SEV_STATUS.SUCCESS) return;
    this.#freeBuffer();
    throw commandFailure(command, status);
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

  /** Issues a command whose buffer firmware reads. */
  command(command: number, buffer?: Uint8Array, report?: StatusReport): number {
    const refusal = this.#refusal();
    if (refusal !== 0) return refusal;
    const at = spaOf(this.#buffer);
    if (buffer !== undefined) this.memory.write(at, buffer);
    return this.#execute(command, buffer === undefined ? (0 as Spa) : at, report);
  }

  /** Issues a command that takes the address of a page to write an answer to; `into` gets its first bytes. `build` makes the command buffer. */
  ask(
    command: number,
    into: Uint8Array,
    build: (answer: bigint) => Uint8Array,
    report?: StatusReport,
  ): number {
    const frame = this.allocatePage();
    if (frame === NO_PFN) return -ERRNO.ENOMEM;
    const status = this.command(command, build(BigInt(spaOf(frame))), report);
    const answer = status === SEV_STATUS.SUCCESS ? into : undefined;
    return this.takePage(frame, answer) ? status : -ERRNO.EFAULT;
  }

  /** Issues a command that answers in its own buffer: `bytes` become the answer, whatever the status. */
  exchange(command: number, bytes: Uint8Array, report?: StatusReport): number {
    const refusal = this.#refusal();
    if (refusal !== 0) return refusal;
    const frame = this.memory.allocate(0, this.memory.owner('psp'));
    if (frame < 0) return -ERRNO.ENOMEM;
    const page = frame as Pfn;
    this.memory.write(spaOf(page), bytes);
    if (makeFirmware(this.memory, page) !== 0) {
      this.memory.free(page, 0);
      return -ERRNO.EFAULT;
    }
    const status = this.#execute(command, spaOf(page), report);
    return this.takePage(page, bytes) || status < 0 ? status : -ERRNO.EFAULT;
  }

  /** Issues a command that takes the address of bytes to read. `build` makes the command buffer. */
  tell(command: number, bytes: Uint8Array, build: (at: bigint) => Uint8Array, report?: StatusReport): number {
    const frame = this.memory.allocate(0, this.memory.owner('psp'));
    if (frame < 0) return -ERRNO.ENOMEM;
    this.memory.write(spaOf(frame as Pfn), bytes);
    const status = this.command(command, build(BigInt(spaOf(frame as Pfn))), report);
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
    this.takePage(frame);
  }

  /** What firmware wrote to a page of its own, which goes back to the kernel's allocator. False: it is leaked. */
  takePage(frame: Pfn, into?: Uint8Array): boolean {
    if (!this.reclaim(frame)) return false;
    if (into !== undefined) this.memory.read(spaOf(frame), into);
    this.memory.free(frame, 0);
    return true;
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

  /** 0, or why firmware cannot be asked. */
  #refusal(): number {
    if (this.#buffer === NO_PFN) return -ERRNO.ENODEV;
    return this.#dead ? -ERRNO.EBUSY : 0;
  }

  #execute(command: number, buffer: Spa, report: StatusReport | undefined): number {
    const status = this.#mailbox.execute(command, buffer);
    this.#dead = status === NO_ANSWER;
    if (report !== undefined) report.error = this.#dead ? SEV_STATUS.SUCCESS : status;
    return this.#dead ? -ERRNO.ETIMEDOUT : status;
  }

  #freeBuffer(): void {
    this.memory.free(this.#buffer, 0);
    this.#buffer = NO_PFN;
  }
}

/** What a command's failure is to who asked for it: EIO with firmware's status, or the driver's own errno. `status`: not SUCCESS. */
export function commandFailure(what: string, status: number): LinuxError {
  if (status < 0)
    return new LinuxError(errnoName(-status)!, `${what}: firmware was not asked, or did not answer`);
  return new LinuxError(
    'EIO',
    `${what}: firmware says ${sevStatusName(status) ?? `0x${status.toString(16)}`}`,
  );
}
