/**
 * The AMD secure processor as the host sees it: a mailbox of commands (SNP ABI specification; AMD's firmware source, sev_dispatch.c). A command buffer is copied before
 * it is looked at. What firmware knows and this one does not (SWAP_OUT, SWAP_IN, PAGE_MOVE, MD_INIT, DOWNLOAD_FIRMWARE_EX, SEV without SNP) is INVALID_COMMAND, as is
 * what nobody knows; the trace tells them apart.
 *
 * Any bytes are fine as a command: the answer is a status, never an exception.
 */
import { SEV_CMD, sevCommandName } from '../../abi/sev-firmware.ts';
import { SEV_STATUS, sevStatusName } from '../../abi/sev-status.ts';
import type { Spa } from '../../base/address.ts';
import { activate, activateEx, decommission, gctxCreate, guestStatus } from './activation.ts';
import { type CommandBuffer, Firmware, type MachineOptions } from './firmware.ts';
import { guestRequest } from './guest-request.ts';
import { launchFinish, launchStart } from './launch.ts';
import { launchUpdate } from './launch-update.ts';
import { pageReclaim, pageSetState, pageUnsmash } from './page-commands.ts';
import { dfFlush, initEx, platformStatus, shutdownEx, snpInit, snpShutdown } from './platform.ts';

export type { MachineOptions } from './firmware.ts';

interface Handler {
  /** Bytes of the command buffer; 0: the command takes none. */
  readonly size: number;
  readonly run: (firmware: Firmware, command: CommandBuffer) => number;
}

const LARGEST_BUFFER = 64;

const HANDLERS: ReadonlyMap<number, Handler> = new Map([
  [SEV_CMD.SNP_INIT, { size: 0, run: snpInit }],
  [SEV_CMD.SNP_SHUTDOWN, { size: 0, run: snpShutdown }],
  [SEV_CMD.SNP_PLATFORM_STATUS, { size: 8, run: platformStatus }],
  [SEV_CMD.SNP_DF_FLUSH, { size: 0, run: dfFlush }],
  [SEV_CMD.SNP_INIT_EX, { size: 64, run: initEx }],
  [SEV_CMD.SNP_SHUTDOWN_EX, { size: 8, run: shutdownEx }],
  [SEV_CMD.SNP_DECOMMISSION, { size: 8, run: decommission }],
  [SEV_CMD.SNP_ACTIVATE, { size: 16, run: activate }],
  [SEV_CMD.SNP_GUEST_STATUS, { size: 16, run: guestStatus }],
  [SEV_CMD.SNP_GCTX_CREATE, { size: 8, run: gctxCreate }],
  [SEV_CMD.SNP_GUEST_REQUEST, { size: 24, run: guestRequest }],
  [SEV_CMD.SNP_ACTIVATE_EX, { size: 32, run: activateEx }],
  [SEV_CMD.SNP_LAUNCH_START, { size: 48, run: launchStart }],
  [SEV_CMD.SNP_LAUNCH_UPDATE, { size: 32, run: launchUpdate }],
  [SEV_CMD.SNP_LAUNCH_FINISH, { size: 64, run: launchFinish }],
  [SEV_CMD.SNP_PAGE_SET_STATE, { size: 16, run: pageSetState }],
  [SEV_CMD.SNP_PAGE_RECLAIM, { size: 8, run: pageReclaim }],
  [SEV_CMD.SNP_PAGE_UNSMASH, { size: 8, run: pageUnsmash }],
]);

/** A failure to come: the `nth` (1: the next) execution of a command answers `status` and does nothing. */
export interface InjectedFailure {
  readonly command: number;
  readonly nth: number;
  readonly status: number;
}

export class SecureProcessor {
  readonly #firmware: Firmware;
  readonly #bytes = new Uint8Array(LARGEST_BUFFER);
  readonly #command: CommandBuffer = { bytes: this.#bytes, words: new Uint32Array(this.#bytes.buffer) };
  #failures: { command: number; left: number; status: number }[] = [];

  constructor(options: MachineOptions) {
    this.#firmware = new Firmware(options);
  }

  /**
   * Executes a command (SEV_CMD) whose buffer is at `buffer` in host memory (0 for a command that takes none). Returns its status (SEV_STATUS).
   */
  execute(command: number, buffer: Spa): number {
    const status = this.#failures.length > 0 ? this.#injected(command) : undefined;
    const answer = status ?? this.#run(command, buffer);
    if (this.#firmware.trace.on) this.#traceCall(command, answer);
    return answer;
  }

  /** Every core has executed WBINVD: what SNP_DF_FLUSH waits for. */
  cachesWrittenBack(): void {
    this.#firmware.asids.writtenBack();
  }

  /** Makes one execution of a command fail. */
  inject(failure: InjectedFailure): void {
    this.#failures.push({ command: failure.command, left: failure.nth, status: failure.status });
  }

  #run(command: number, buffer: Spa): number {
    const handler = HANDLERS.get(command);
    if (handler === undefined) return SEV_STATUS.INVALID_COMMAND;
    const { size, run } = handler;
    if (size > 0) {
      if (!this.#firmware.isMemory(buffer, size)) return SEV_STATUS.INVALID_ADDRESS;
      if (size === LARGEST_BUFFER) this.#firmware.memory.read(buffer, this.#bytes);
      else {
        this.#bytes.fill(0);
        this.#firmware.memory.read(buffer, this.#bytes.subarray(0, size));
      }
    }
    return run(this.#firmware, this.#command);
  }

  #injected(command: number): number | undefined {
    for (const failure of this.#failures) {
      if (failure.command !== command) continue;
      failure.left--;
      if (failure.left > 0) continue;
      this.#failures = this.#failures.filter((other) => other !== failure);
      return failure.status;
    }
    return undefined;
  }

  #traceCall(command: number, status: number): void {
    const name = sevCommandName(command);
    this.#firmware.trace.emit({
      kind: 'call',
      who: 'firmware',
      what: name ?? `command 0x${command.toString(16)}`,
      status: sevStatusName(status) ?? `0x${status.toString(16)}`,
      ...(name !== undefined && !HANDLERS.has(command) && { why: 'not implemented' }),
    });
  }
}
