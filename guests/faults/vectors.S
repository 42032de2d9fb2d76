# One stub for each of the first 32 vectors: pushes a zero where the CPU pushes no error code, then the vector, and calls
# handle(frame). Stubs are 16 bytes apart.

        .text
        .globl  vectors
        .balign 16
vectors:
        .set    vector, 0
        .rept   32
        .balign 16
        .if     !((0x60227d00 >> vector) & 1)
        pushq   $0
        .endif
        pushq   $vector
        jmp     common
        .set    vector, vector + 1
        .endr

common:
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rbx
        pushq   %rbp
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, %rdi
        movq    %rsp, %rbx
        andq    $-16, %rsp
        cld
        call    handle
        movq    %rbx, %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rbp
        popq    %rbx
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp
        iretq

        .section .note.GNU-stack, "", @progbits
