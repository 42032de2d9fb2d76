/**
 * The AMD secure processor as the host sees it: a mailbox of commands (SNP ABI specification; AMD's firmware source, sev_dispatch.c). A command buffer is copied before
 * it is looked at. What firmware knows and this one does not (SWAP_OUT, SWAP_IN, PAGE_MOVE, MD_INIT, DOWNLOAD_FIRMWARE_EX, SEV without SNP) is INVALID_COMMAND, as is
 * what nobody knows; the trace tells them apart.
 *
 * Any bytes are fine as a command: the answer is a status, never an exception.
 */
import { SEV_CMD, sevCommandName } from '../../abi/sev-firmware.ts';
import { SEV_STATUS, sevStatusName } from '../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';
import { FRAME_FLAG } from '../memory/host-memory.ts';
import { activate, activateEx, decommission, gctxCreate, guestStatus } from './activation.ts';
import {
  commit,
  config,
  type FirmwareUpdate,
  featureInfo,
  getId,
  updateFirmware,
  vlekLoad,
} from './configuration.ts';
import { debugDecrypt, debugEncrypt } from './debug.ts';
import { type CommandBuffer, Firmware, type MachineOptions } from './firmware.ts';
import { guestRequest } from './guest-request.ts';
import { launchFinish, launchStart } from './launch.ts';
import { launchUpdate } from './launch-update.ts';
import { pageReclaim, pageSetState, pageUnsmash } from './page-commands.ts';
import {
  dfFlush,
  initEx,
  legacyPlatformStatus,
  platformStatus,
  shutdownEx,
  snpInit,
  snpShutdown,
} from './platform.ts';

export type { FirmwareUpdate } from './configuration.ts';
export type { MachineOptions } from './firmware.ts';

interface Handler {
  /** Bytes of the command buffer; 0: the command takes none. */
  readonly size: number;
  readonly run: (firmware: Firmware, command: CommandBuffer) => number;
  /** The buffer is an answer as well: it is written back, whatever the status. */
  readonly answers?: true;
}

const LARGEST_BUFFER = 64;

const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [SEV_CMD.PLATFORM_STATUS, { size: 12, run: legacyPlatformStatus, answers: true }],
  [SEV_CMD.GET_ID, { size: 16, run: getId, answers: true }],
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
  [SEV_CMD.SNP_DBG_DECRYPT, { size: 24, run: debugDecrypt }],
  [SEV_CMD.SNP_DBG_ENCRYPT, { size: 24, run: debugEncrypt }],
  [SEV_CMD.SNP_PAGE_SET_STATE, { size: 16, run: pageSetState }],
  [SEV_CMD.SNP_PAGE_RECLAIM, { size: 8, run: pageReclaim }],
  [SEV_CMD.SNP_PAGE_UNSMASH, { size: 8, run: pageUnsmash }],
  [SEV_CMD.SNP_CONFIG, { size: 64, run: config }],
  [SEV_CMD.SNP_COMMIT, { size: 4, run: commit }],
  [SEV_CMD.SNP_VLEK_LOAD, { size: 16, run: vlekLoad }],
  [SEV_CMD.SNP_FEATURE_INFO, { size: 16, run: featureInfo }],
]);

/** What `execute` returns for a command that the processor never finishes. */
export const NO_ANSWER = -1;

/** A failure to come: the `nth` (1: the next) execution of a command answers `status`, or NO_ANSWER, and does nothing. */
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
   * Executes a command (SEV_CMD) whose buffer is at `buffer` in host memory (0 for a command that takes none). Returns its status (SEV_STATUS), or NO_ANSWER.
   */
  execute(command: number, buffer: Spa): number {
    const answer = this.#injected(command) ?? this.#run(command, buffer);
    if (this.#firmware.trace.on) this.#traceCall(command, answer);
    return answer;
  }

  /** Every core has executed WBINVD: what SNP_DF_FLUSH waits for. */
  cachesWrittenBack(): void {
    this.#firmware.asids.writtenBack();
  }

  /**
   * Puts other firmware or microcode in place of what runs, as DOWNLOAD_FIRMWARE_EX and a microcode update do. Returns a status: BAD_SVN or BAD_VERSION for what is below
   * the committed.
   */
  updateFirmware(update: FirmwareUpdate): number {
    return updateFirmware(this.#firmware, update);
  }

  /** Makes one execution of a command fail. */
  inject(failure: InjectedFailure): void {
    this.#failures.push({ command: failure.command, left: failure.nth, status: failure.status });
  }

  #run(command: number, buffer: Spa): number {
    const handler = HANDLERS.get(command);
    if (handler === undefined) return SEV_STATUS.INVALID_COMMAND;
    const firmware = this.#firmware;
    const { size, run } = handler;
    if (size === 0) return run(firmware, this.#command);
    if (!firmware.isMemory(buffer, size)) return SEV_STATUS.INVALID_ADDRESS;
    if (handler.answers) {
      const writable = firmware.checkAnswerPage(buffer);
      if (writable !== SEV_STATUS.SUCCESS) return writable;
    }
    this.#fetch(buffer, size);
    const status = run(firmware, this.#command);
    if (handler.answers) this.#giveBack(buffer, this.#bytes.subarray(0, size));
    return status;
  }

  /** Copies a command buffer of whole words; most lie in one page that nobody encrypts, and are aligned. */
  #fetch(buffer: Spa, size: number): void {
    const { memory } = this.#firmware;
    const isPlain =
      buffer % 8 === 0 &&
      (buffer % PAGE_SIZE) + size <= PAGE_SIZE &&
      (memory.frameFlags[buffer >>> 12]! & FRAME_FLAG.ENCRYPTED) === 0;
    if (!isPlain) {
      memory.read(buffer, this.#bytes.subarray(0, size));
      return;
    }
    const { words } = this.#command;
    const at = buffer / 4;
    for (let i = 0; i < size / 4; i++) words[i] = memory.words[at + i]!;
  }

  /** Answers in the command buffer; with SNP initialised its page, which is firmware's then, goes to state Reclaim (sev_dispatch.c). */
  #giveBack(buffer: Spa, bytes: Uint8Array): void {
    const firmware = this.#firmware;
    firmware.write(buffer, bytes);
    if (!firmware.isInitialised) return;
    const frame = Math.floor(buffer / PAGE_SIZE) as Pfn;
    firmware.rmp.setEntry(frame, { ...firmware.entryOf(frame), immutable: false });
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
      status: status === NO_ANSWER ? 'no answer' : (sevStatusName(status) ?? `0x${status.toString(16)}`),
      ...(name !== undefined && !HANDLERS.has(command) && { why: 'not implemented' }),
    });
  }
}
